rule benchmark_seedbench:
    output:
        R / "benchmarks/SEEDBench.tsv",
    log:
        R / "logs/benchmarks/SEEDBench.log",
    params:
        preset=PRESET,
        settings=digest({"corpus": preset.corpus, "benchmark": preset.benchmarks.get("SEEDBench")}),
    shell:
        "python -m eval benchmark SEEDBench --preset {params.preset} --out {output} > {log} 2>&1"
