//! What keeps a part from outliving its supervisor, even one killed with SIGKILL.
//!
//! A part is started as `musectl guard --parent PID PROGRAM -- ARGUMENTS…`. The guard asks the kernel to kill this process
//! when the parent dies, and then *becomes* the program: same process, same id, and the request survives. So it holds for
//! any program, our own or a Redis server, without its help. Safe calls alone: between fork and exec of the supervisor
//! itself, Rust would need unsafe code.

use std::{ffi::OsString, io, process::Command};

/// Becomes `program`. Returns only when that failed.
///
/// The kernel's request is about the *thread* that started this process: the supervisor starts parts from one thread that
/// it keeps ([`super::LocalCluster`]).
pub fn become_program(parent: u32, program: &OsString, arguments: &[OsString]) -> io::Error {
    match tie_to(parent) {
        Ok(()) => std::os::unix::process::CommandExt::exec(Command::new(program).args(arguments)),
        Err(error) => error,
    }
}

#[cfg(target_os = "linux")]
fn tie_to(parent: u32) -> io::Result<()> {
    use nix::{
        sys::{prctl::set_pdeathsig, signal::Signal},
        unistd::getppid,
    };

    // Not SIGTERM: nobody is left to wait for a drain, and every part is made to bear this.
    set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the request was made; then no signal would ever come.
    if u32::try_from(getppid().as_raw()).ok() != Some(parent) {
        return Err(io::Error::other("the supervisor is gone"));
    }
    Ok(())
}

/// Other systems have no such request: a supervisor that is killed leaves its parts behind there.
#[cfg(not(target_os = "linux"))]
fn tie_to(_parent: u32) -> io::Result<()> {
    Ok(())
}
