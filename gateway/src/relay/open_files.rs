//! How many files the system lets this process have open: each connection is one.

/// Files for everything that is not a client: the database, the endpoint, upstream relays.
const RESERVE: u64 = 256;

/// Raises the limit as far as it may be raised for so many connections. Returns how many there is
/// room for, at least one.
pub(super) fn make_room(connections: usize) -> usize {
    let wanted = (connections as u64).saturating_add(RESERVE);
    let allowed = raise(wanted);
    if allowed >= wanted {
        return connections;
    }
    let room = allowed.saturating_sub(RESERVE).max(1);
    tracing::info!(
        room,
        "fewer connections than relay.max_connections: the system allows {allowed} open files \
         (ulimit -n)"
    );
    usize::try_from(room).unwrap_or(connections)
}

#[cfg(unix)]
fn raise(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let now = current.unwrap_or(u64::MAX);
    let target = wanted.min(maximum.unwrap_or(u64::MAX));
    if now >= target {
        return now;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum }) {
        Ok(()) => target,
        Err(_) => now,
    }
}

#[cfg(not(unix))]
fn raise(wanted: u64) -> u64 {
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_as_many_as_the_system_allows() {
        assert_eq!(make_room(10), 10);
        // As many as the system allows, and no panic.
        assert!(make_room(usize::MAX) >= 10);
    }
}
