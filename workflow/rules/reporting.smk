rule report:
    input:
        config="results/{run}/config/report.json",
        settings=lambda w: PLANS[w.run].stage_files,
        pairs=lambda w: f"results/{w.run}/pairs" if PLANS[w.run].trains else [],
        arms=lambda w: expand(
            "results/{run}/{part}/{arm}",
            run=w.run,
            part=["adapters", "models"],
            arm=PLANS[w.run].arms,
        ),
        tracks=lambda w: PLANS[w.run].tracks,
        scores=lambda w: PLANS[w.run].scores,
        general=lambda w: PLANS[w.run].general,
        sources=plan.sources("report"),
    output:
        page=report(
            "results/{run}/report/index.html",
            caption="../report/page.rst",
            category="Results",
        ),
        summary="results/{run}/report/summary.json",
        text=report(
            "results/{run}/report/summary.md",
            caption="../report/summary.rst",
            category="Results",
        ),
    log:
        "results/{run}/logs/report.log",
    benchmark:
        "results/{run}/benchmarks/report.tsv"
    threads: 1
    params:
        results=subpath(output.page, ancestor=2),
        out=subpath(output.page, parent=True),
    message:
        "Writing {output.page}"
    # The workflow prints the summary at its end (r1track/failures.py).
    shell:
        "r1track --log {log} report --results {params.results} --out {params.out} > /dev/null"
