//! muse-bench: what the engine and the cluster reach on this machine, beside each other and beside peers.

fn main() -> std::process::ExitCode {
    muse_bench::run()
}
