rule toy:
    input:
        config=f"{PLAN.results}/config/toy.json",
        sources=plan.sources("toy"),
    output:
        train=f"{PLAN.scratch}/toy/train/list.txt",
        val=f"{PLAN.scratch}/toy/val/list.txt",
    log:
        f"{PLAN.results}/logs/toy.log",
    benchmark:
        f"{PLAN.results}/benchmarks/toy.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    params:
        out=subpath(output.train, ancestor=2),
    message:
        "Writing the synthetic sequences"
    shell:
        "r1track --log {log} toy --config {input.config} --out {params.out}"


rule sample:
    input:
        config=f"{PLAN.results}/config/sample.json",
        frames=PLAN.pair_sources,
        sources=plan.sources("sample"),
    output:
        directory(f"{PLAN.results}/pairs"),
    log:
        f"{PLAN.results}/logs/sample.log",
    benchmark:
        f"{PLAN.results}/benchmarks/sample.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores
    params:
        root=lambda w: [] if PLAN.train is None else ["--root", PLAN.train],
        source=lambda w: PLAN.train or PLAN.settings.sample.hub,
    message:
        "Making pairs from {params.source}"
    shell:
        "r1track --log {log} sample --config {input.config} {params.root:q} --out {output}"
        " --processes {threads}"
