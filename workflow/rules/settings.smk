rule settings:
    # One file per stage, with the sections that it depends on: a changed value reruns it and what follows, nothing else.
    output:
        f"{PLAN.results}/config/{{stage}}.json",
    log:
        f"{PLAN.results}/logs/settings/{{stage}}.log",
    params:
        section=lambda w: configuration.stage_values(PLAN.settings, w.stage),
    message:
        "Configuration of {wildcards.stage}"
    run:
        write_json(Path(output[0]), params.section)
