//! musectl: generate pictures, watch jobs, look at queues, workers and bundles, run a local cluster.

fn main() -> std::process::ExitCode {
    musectl::run()
}
