rule settings:
    # One file per stage, with the sections that it depends on: a changed value reruns it and what follows, nothing else.
    input:
        # None; but a file that is not as the configuration has it is written anew, whatever --rerun-triggers says.
        lambda w: workflow.dag.forcefiles.update(STALE) or [],
    output:
        "results/{run}/config/{stage}.json",
    log:
        "results/{run}/logs/settings/{stage}.log",
    # First of all, so that nothing waits for it that has a priority itself.
    priority: 20
    message:
        "Configuration of {wildcards.stage}"
    run:
        write_json(
            Path(output[0]),
            configuration.stage_values(
                PLANS[wildcards.run].settings, wildcards.stage
            ),
        )
