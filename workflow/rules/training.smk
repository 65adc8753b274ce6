rule train:
    input:
        config=f"{PLAN.results}/config/train.json",
        base=lambda w: PLAN.weights(PLAN.initial_model(w.arm)),
        pairs=f"{PLAN.results}/pairs",
        sources=plan.sources("train"),
    output:
        directory(f"{PLAN.results}/adapters/{{arm}}"),
    log:
        f"{PLAN.results}/logs/train/{{arm}}.log",
    benchmark:
        f"{PLAN.results}/benchmarks/train/{{arm}}.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        model=lambda w: PLAN.model(PLAN.initial_model(w.arm)),
        # Not an output: Snakemake deletes the outputs of a job that fails, and with them its checkpoints.
        scratch=lambda w: f"{PLAN.scratch}/train/{w.arm}",
    message:
        "Training {wildcards.arm}"
    shell:
        "r1track --log {log} train --config {input.config} --arm {wildcards.arm} --model {params.model:q}"
        " --pairs {input.pairs} --scratch {params.scratch} --out {output}"


rule merge:
    input:
        config=f"{PLAN.results}/config/merge.json",
        base=lambda w: PLAN.weights(PLAN.initial_model(w.arm)),
        adapter=f"{PLAN.results}/adapters/{{arm}}",
        pairs=f"{PLAN.results}/pairs",
        sources=plan.sources("merge"),
    output:
        directory(f"{PLAN.results}/models/{{arm}}"),
    log:
        f"{PLAN.results}/logs/merge/{{arm}}.log",
    benchmark:
        f"{PLAN.results}/benchmarks/merge/{{arm}}.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        model=lambda w: PLAN.model(PLAN.initial_model(w.arm)),
    message:
        "Merging {wildcards.arm}"
    shell:
        "r1track --log {log} merge --config {input.config} --model {params.model:q} --adapter {input.adapter}"
        " --pairs {input.pairs} --out {output}"
