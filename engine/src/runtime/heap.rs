//! The process's heap, after graphs were opened.

#![allow(
    unsafe_code,
    reason = "glibc's malloc_trim, of which no crate that is kept makes a safe call"
)]

/// Gives memory that the process has freed, but its allocator kept, back to the system: opening a graph takes about as much
/// as the graph for a moment. With glibc; other allocators have rules of their own, and nothing happens.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it takes no memory of ours, locks what it looks at, and may be called by any thread at any time.
        unsafe {
            malloc_trim(0);
        }
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::fs;

    use super::*;

    /// Pages of the process that are in memory.
    fn resident_pages() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_below_what_is_in_use_goes_back() {
        // Below the size that is mapped by itself, and with something in use behind it.
        let freed: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 65_536]).collect();
        let in_use = vec![1_u8; 65_536];
        drop(freed);
        let before = resident_pages();
        return_freed_memory();
        let after = resident_pages();
        assert!(after + 16_000 < before, "{before} pages before, {after} after");
        drop(in_use);
    }
}
