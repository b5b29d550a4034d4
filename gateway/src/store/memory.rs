//! What the store keeps in memory about the file, shared by the writer and all readers.

use std::sync::OnceLock;

use rusqlite::{Connection, OptionalExtension};

use super::{
    gone,
    known::{Known, prefix},
    newest::{AuthorNumbers, Newest},
    search::Search,
    versions::Versions,
};
use crate::protocol::PublicKey;

#[derive(Debug)]
pub(super) struct Memory {
    /// Ids that are held or deleted, by their authors or by the operator.
    pub ids: Known,
    /// Authors who vanished.
    pub vanished: Known,
    pub newest: Newest,
    pub authors: AuthorNumbers,
    pub versions: Versions,
    /// The search index; never set when search is off.
    pub search: OnceLock<Search>,
}

impl Memory {
    /// For a file with this many events. [`Self::load`] fills it; until then it knows nothing, and
    /// everything is looked up.
    pub fn new(events: u64) -> Self {
        Self {
            ids: Known::new(events),
            vanished: Known::new(0),
            newest: Newest::default(),
            authors: AuthorNumbers::default(),
            versions: Versions::default(),
            search: OnceLock::new(),
        }
    }

    /// Reads what was stored before the start, in the order of two indexes. About half a second for a
    /// million events. The writer adds what it commits meanwhile by itself.
    ///
    /// # Errors
    /// When the file cannot be read; then it goes on knowing nothing.
    pub fn load(&self, connection: &Connection) -> rusqlite::Result<()> {
        each_prefix(connection, "SELECT id FROM deleted_ids", |id| self.ids.insert(id))?;
        each_prefix(
            connection,
            "SELECT substr(id, 1, 8) FROM events INDEXED BY events_by_id",
            |id| self.ids.insert(id),
        )?;
        each_prefix(connection, gone::REMOVED_IDS, |id| self.ids.insert(id))?;
        self.ids.set_complete();
        each_prefix(connection, "SELECT pubkey FROM vanished", |key| self.vanished.insert(key))?;
        self.vanished.set_complete();
        let mut statement = connection.prepare(
            "SELECT author, kind, max(created_at), count(*) FROM events INDEXED BY events_by_author \
             GROUP BY author, kind",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.newest.add(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        }
        self.newest.set_complete();
        Ok(())
    }

    /// The number of an author, `None` when nothing of theirs was ever stored.
    pub fn author(
        &self,
        connection: &Connection,
        key: &PublicKey,
    ) -> rusqlite::Result<Option<u32>> {
        if let Some(number) = self.authors.get(key) {
            return Ok(Some(number));
        }
        let number = connection
            .prepare_cached("SELECT author FROM authors WHERE pubkey = ?1")?
            .query_row([key.0], |row| row.get(0))
            .optional()?;
        if let Some(number) = number {
            self.authors.insert(*key, number);
        }
        Ok(number)
    }

    /// The numbers of those authors of whom anything was ever stored.
    pub fn authors_of(
        &self,
        connection: &Connection,
        keys: &[PublicKey],
    ) -> rusqlite::Result<Vec<u32>> {
        let (mut numbers, unknown) = self.authors.get_all(keys);
        for key in &unknown {
            numbers.extend(self.author(connection, key)?);
        }
        Ok(numbers)
    }
}

fn each_prefix(
    connection: &Connection,
    sql: &str,
    mut take: impl FnMut(u64),
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(0)?.as_blob()?;
        let mut whole = [0; 32];
        let length = bytes.len().min(32);
        whole[..length].copy_from_slice(&bytes[..length]);
        take(prefix(&whole));
    }
    Ok(())
}
