//! Short numbers for topics and origins.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

/// A table of names, read through a cache. The writer owns it; names are never removed.
pub(super) struct Names {
    select: &'static str,
    insert: &'static str,
    known: HashMap<String, i64>,
}

/// Names that one process may cache; a gateway has as many as topics and streams.
const MAX_CACHED: usize = 10_000;

impl Names {
    pub fn topics() -> Self {
        Self {
            select: "SELECT topic FROM topics WHERE name = ?1",
            insert: "INSERT INTO topics (name) VALUES (?1)",
            known: HashMap::new(),
        }
    }

    pub fn origins() -> Self {
        Self {
            select: "SELECT origin FROM origins WHERE name = ?1",
            insert: "INSERT INTO origins (name) VALUES (?1)",
            known: HashMap::new(),
        }
    }

    /// The name's number, made when it is new. After a roll-back the caller must [`Self::forget`].
    pub fn number(&mut self, connection: &Connection, name: &str) -> rusqlite::Result<i64> {
        if let Some(number) = self.known.get(name) {
            return Ok(*number);
        }
        let found = connection
            .prepare_cached(self.select)?
            .query_row([name], |row| row.get(0))
            .optional()?;
        let number = match found {
            Some(number) => number,
            None => {
                connection.prepare_cached(self.insert)?.execute(params![name])?;
                connection.last_insert_rowid()
            }
        };
        if self.known.len() < MAX_CACHED {
            self.known.insert(name.to_owned(), number);
        }
        Ok(number)
    }

    pub fn forget(&mut self) {
        self.known.clear();
    }
}
