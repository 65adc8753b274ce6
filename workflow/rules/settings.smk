rule settings:
    # One file per stage, with what that stage depends on: another value reruns the stage and what follows, nothing else.
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
