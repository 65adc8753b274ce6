rule train:
    input:
        # That of `train`, or that of the arm sft alone.
        config=lambda w: f"results/{w.home}/config/{configuration.stage_file('train', w.arm)}.json",
        base=lambda w: PLANS[w.home].weights(PLANS[w.home].initial_model(w.arm)),
        pairs=lambda w: PLANS[w.home].place("pairs"),
        reward=lambda w: PLANS[w.home].reward if w.arm == "grpo" else [],
        sources=plan.sources("train"),
    output:
        directory("results/{home}/adapters/{arm}"),
    log:
        "results/{home}/logs/train/{arm}.log",
    benchmark:
        "results/{home}/benchmarks/train/{arm}.tsv"
    priority: 5  # see the rule `sample`
    threads: lambda w: PLANS[w.home].cores(CORES)
    resources:
        gpu=cards_of,
    params:
        model=lambda w: PLANS[w.home].model(PLANS[w.home].initial_model(w.arm)),
        # Not an output: Snakemake deletes the outputs of a job that fails, and with them its checkpoints.
        scratch=lambda w: f"{PLANS[w.home].scratch}/train/{w.arm}",
    message:
        "Training {wildcards.arm}"
    shell:
        "r1track --log {log} train --config {input.config} --arm {wildcards.arm} --model {params.model:q}"
        " --pairs {input.pairs} --scratch {params.scratch} --out {output}"


rule merge:
    input:
        config="results/{home}/config/merge.json",
        base=lambda w: PLANS[w.home].weights(PLANS[w.home].initial_model(w.arm)),
        adapter=lambda w: PLANS[w.home].place(f"adapters/{w.arm}"),
        pairs=lambda w: PLANS[w.home].place("pairs"),
        sources=plan.sources("merge"),
    output:
        directory("results/{home}/models/{arm}"),
    log:
        "results/{home}/logs/merge/{arm}.log",
    benchmark:
        "results/{home}/benchmarks/merge/{arm}.tsv"
    priority: 5  # see the rule `sample`
    threads: lambda w: PLANS[w.home].cores(CORES)
    resources:
        gpu=cards_of,
    params:
        model=lambda w: PLANS[w.home].model(PLANS[w.home].initial_model(w.arm)),
    message:
        "Merging {wildcards.arm}"
    shell:
        "r1track --log {log} merge --config {input.config} --model {params.model:q} --adapter {input.adapter}"
        " --pairs {input.pairs} --out {output}"
