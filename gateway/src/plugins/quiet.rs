//! Loading plugins beside events, which come first.

/// Gives the calling thread a low priority, for good: what is in its way is never in the way of those
/// that judge and store events. On other systems than Linux it does nothing; updates are louder there, no
/// more.
pub fn be_quiet() {
    #[cfg(target_os = "linux")]
    if let Err(error) = linux::be_quiet() {
        tracing::debug!(%error, "plugins are loaded with the priority of everything else");
    }
}

#[cfg(target_os = "linux")]
mod linux {
    #![allow(unsafe_code, reason = "no crate offers this system call safely")]

    use std::io;

    /// As `nice` counts.
    const NICE: i32 = 10;
    /// The shortest time slice that there is. From Linux 6.12 on a thread that wakes up does not come
    /// before the one that runs until that has had its slice, whatever their priorities: 1.4 ms by
    /// default with two cores, and an event passes several threads.
    const SLICE_NS: u64 = 100_000;

    pub fn be_quiet() -> io::Result<()> {
        // SAFETY: all of it is numbers, and zero stands for what is not said.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        attributes.size = size_of::<libc::sched_attr>() as u32;
        attributes.sched_policy = libc::SCHED_OTHER as u32;
        attributes.sched_nice = NICE;
        // Older kernels pass over it.
        attributes.sched_runtime = SLICE_NS;
        // SAFETY: the calling thread (0), a structure of the size that it says, and no flags.
        let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    #[cfg(test)]
    mod tests {
        use std::fs;

        use crate::tasks;

        fn nice() -> i32 {
            let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            fields.split(' ').nth(16).unwrap().parse().unwrap()
        }

        /// Whether a thread may have slices of its own length.
        fn has_own_slices() -> bool {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
            (numbers.next(), numbers.next()) >= (Some(6), Some(12))
        }

        #[test]
        fn the_thread_alone_is_quiet() {
            let before = nice();
            let quiet = tasks::thread("quiet", || {
                super::be_quiet().unwrap();
                assert_eq!(nice(), super::NICE);
                // Not every kernel tells.
                let told = fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
                let slice = told.lines().find(|line| line.starts_with("se.slice"));
                if let Some(slice) = slice.filter(|_| has_own_slices()) {
                    assert!(slice.ends_with(" 100000"), "{slice}");
                }
            });
            quiet.unwrap().join().unwrap();
            assert_eq!(nice(), before);
        }
    }
}
