//! The Lua scripts, compiled in.

use std::sync::LazyLock;

use redis::Script;

use super::compose::compose;

/// Every script of a queue shard begins with what it needs of the shared part.
macro_rules! shard_script {
    ($flags:literal, $file:literal) => {
        LazyLock::new(|| {
            Script::new(&compose(
                $flags,
                include_str!("scripts/common.lua"),
                include_str!(concat!("scripts/", $file)),
            ))
        })
    };
}

/// Scripts that finish or free something run also when memory is short; new work does not get in then.
macro_rules! shard_scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) static $name: LazyLock<Script> = shard_script!("flags=allow-oom", $file);)*
    };
}

pub(super) static SUBMIT: LazyLock<Script> = shard_script!("flags=", "submit.lua");

shard_scripts! {
    CLAIM = "claim.lua";
    BEAT = "beat.lua";
    COMPLETE = "complete.lua";
    FAIL = "fail.lua";
    RELEASE = "release.lua";
    REAP = "reap.lua";
    CANCEL = "cancel.lua";
    PURGE = "purge.lua";
    TENANT_SET = "tenant_set.lua";
    PAUSE = "pause.lua";
    RETRY_DEAD = "retry_dead.lua";
    PURGE_DEAD = "purge_dead.lua";
    REQUEUE = "requeue.lua";
    AUDIT = "audit.lua";
}

/// The registry's scripts stand alone.
macro_rules! registry_scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!("#!lua flags=allow-oom\n", include_str!(concat!("scripts/", $file))))
        });)*
    };
}

registry_scripts! {
    WORKER_SEEN = "worker_seen.lua";
    WORKER_LEFT = "worker_left.lua";
    WORKER_DRAIN = "worker_drain.lua";
}
