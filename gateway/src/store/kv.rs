//! What plugins remember, on disk. The writer commits it with what else is waiting, so nobody else
//! takes the file's lock.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, params};

use super::{
    Store, open,
    writes::{Change, Order},
};
use crate::pipeline::{KvChange, KvPair, KvStore, StoreError};

pub(super) const LOAD: &str = "SELECT key, value, expires_at FROM plugin_kv WHERE plugin = ?1";
const SET: &str =
    "INSERT OR REPLACE INTO plugin_kv (plugin, key, value, expires_at) VALUES (?1, ?2, ?3, ?4)";
const FORGET: &str = "DELETE FROM plugin_kv WHERE plugin = ?1";
const REMOVE: &str = "DELETE FROM plugin_kv WHERE plugin = ?1 AND key = ?2";

/// How long another program may have the file.
const PATIENCE: Duration = Duration::from_secs(5);

impl KvStore for Store {
    fn load(&self, plugin: &str) -> Result<Vec<KvPair>, StoreError> {
        // Rarely: when a plugin is loaded.
        let connection = open::reader(&self.data_dir.join("gateway.db"))?;
        let mut pairs = connection.prepare(LOAD)?;
        let pair = |row: &rusqlite::Row<'_>| {
            let expires_at: Option<i64> = row.get(2)?;
            Ok(KvPair {
                key: row.get(0)?,
                value: row.get(1)?,
                expires_at: expires_at.map(i64::unsigned_abs),
            })
        };
        Ok(pairs.query_map([plugin], pair)?.collect::<Result<_, _>>()?)
    }

    fn save(&self, changes: Vec<KvChange>) -> Result<(), StoreError> {
        let change: Change = Box::new(move |connection, _| {
            for change in &changes {
                apply(connection, change)?;
            }
            Ok(0)
        });
        self.writes.ask(|answer| Order::Run(change, answer)).map(drop)
    }
}

/// Forgets what a plugin remembered, in a data directory where no gateway runs. One that was never used
/// is left as it is.
///
/// # Errors
/// When the database cannot be changed.
pub fn forget_plugin(data_dir: &Path, plugin: &str) -> Result<(), StoreError> {
    let file = data_dir.join("gateway.db");
    if !file.exists() {
        return Ok(());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(PATIENCE)?;
    if connection.table_exists(None, "plugin_kv")? {
        connection.execute(FORGET, [plugin])?;
    }
    Ok(())
}

fn apply(connection: &Connection, change: &KvChange) -> rusqlite::Result<()> {
    match change {
        KvChange::Set { plugin, pair } => {
            let expires_at = pair.expires_at.map(|at| i64::try_from(at).unwrap_or(i64::MAX));
            connection
                .prepare_cached(SET)?
                .execute(params![&**plugin, pair.key, pair.value, expires_at])?;
        }
        KvChange::Removed { plugin, key } => {
            connection.prepare_cached(REMOVE)?.execute(params![&**plugin, key])?;
        }
    }
    Ok(())
}
