//! Giving back the memory that a flood of events took.

use rusqlite::Connection;

/// Empties the page cache of a connection, and gives the system back what SQLite's allocator keeps.
/// Takes milliseconds; pages are read again when they are needed.
pub(super) fn give_back(connection: &Connection) {
    if let Err(error) = connection.execute_batch("PRAGMA shrink_memory") {
        tracing::debug!(%error, "the page cache stays as it is");
    }
    trim();
}

/// SQLite allocates in C: pages that it frees stay with the C library, of all threads, until it is
/// asked for them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "no crate offers it safely")]
fn trim() {
    // SAFETY: it takes the allocator's own locks, and gives up nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code, reason = "the only way to ask how large a cache is")]

    use rusqlite::ffi;

    use super::*;

    fn cached(connection: &Connection) -> i32 {
        let (mut now, mut most) = (0, 0);
        // SAFETY: the connection is open, and both numbers are ours.
        let code = unsafe {
            let (handle, what) = (connection.handle(), ffi::SQLITE_DBSTATUS_CACHE_USED);
            ffi::sqlite3_db_status(handle, what, &mut now, &mut most, 0)
        };
        assert_eq!(code, ffi::SQLITE_OK);
        now
    }

    #[test]
    fn the_page_cache_is_emptied_and_all_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("db")).unwrap();
        connection.pragma_update(None, "cache_size", -16_000).unwrap();
        connection
            .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(8000000))")
            .unwrap();
        assert!(cached(&connection) > 4_000_000, "{}", cached(&connection));
        give_back(&connection);
        assert!(cached(&connection) < 200_000, "{}", cached(&connection));
        let sum = "SELECT length(x) FROM t";
        assert_eq!(connection.query_row(sum, [], |row| row.get::<_, i64>(0)), Ok(8_000_000));
    }
}
