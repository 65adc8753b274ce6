rule toy:
    input:
        config="results/{home}/config/toy.json",
        sources=plan.sources("toy"),
    output:
        train="scratch/{home}/toy/train/list.txt",
        val="scratch/{home}/toy/val/list.txt",
    log:
        "results/{home}/logs/toy.log",
    benchmark:
        "results/{home}/benchmarks/toy.tsv"
    threads: 1
    params:
        out=subpath(output.train, ancestor=2),
    message:
        "Writing the synthetic sequences"
    shell:
        "r1track --log {log} toy --config {input.config} --out {params.out}"


rule sample:
    input:
        config="results/{home}/config/sample.json",
        frames=lambda w: PLANS[w.home].pair_sources,
        sources=plan.sources("sample"),
    output:
        directory("results/{home}/pairs"),
    log:
        "results/{home}/logs/sample.log",
    benchmark:
        "results/{home}/benchmarks/sample.tsv"
    priority: 5  # before what nothing waits for: this, the training and the merge are the longest way to the report
    # The synthetic frames are few: a second process would start for longer than it works.
    threads: lambda w: 1 if PLANS[w.home].settings.data.train == "toy/train" else workflow.cores
    params:
        root=lambda w: ["--root", PLANS[w.home].train] if PLANS[w.home].train else [],
        source=lambda w: PLANS[w.home].train or PLANS[w.home].settings.sample.hub,
    message:
        "Making pairs from {params.source}"
    shell:
        "r1track --log {log} sample --config {input.config} {params.root:q} --out {output}"
        " --processes {threads}"
