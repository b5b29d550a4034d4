//! The operator's rules on disk.

use std::{path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;

use super::{gone::BANNED, memory::Memory, rare::RareTables};
use crate::{
    pipeline::{
        StoreError,
        moderation::{Change, List, ModerationStore, Stored},
    },
    protocol::EventId,
};

/// The table `moderation` of `gateway.db`.
pub struct ModerationTable {
    tables: RareTables,
    memory: Arc<Memory>,
}

impl ModerationTable {
    /// In the data directory of a store that is open: opening it made the table.
    pub(super) fn new(data_dir: &Path, memory: Arc<Memory>) -> Self {
        Self { tables: RareTables::new(data_dir), memory }
    }

    async fn read(&self) -> Result<Vec<Stored>, StoreError> {
        let question = "SELECT list, item, text FROM moderation";
        self.tables.read(|c| Box::pin(sqlx::query_as(question).fetch_all(c))).await
    }

    async fn write(&self, change: Change) -> Result<(), StoreError> {
        let is_again = !brings_back(&change).is_empty();
        let _raised = is_again.then(|| RaisesAll(&self.memory));
        self.tables.change(|c| Box::pin(write(c, change))).await
    }
}

/// Raises the version of every topic at the end, also when nobody waits for the change any more.
struct RaisesAll<'m>(&'m Memory);

impl Drop for RaisesAll<'_> {
    fn drop(&mut self) {
        self.0.versions.raise_all();
    }
}

async fn write(connection: &mut SqliteConnection, change: Change) -> sqlx::Result<()> {
    for statement in brings_back(&change) {
        match statement {
            Again::Banned => {
                sqlx::query("DELETE FROM gone WHERE cause & 15 = ?1")
                    .bind(BANNED)
                    .execute(&mut *connection)
                    .await?;
            }
            Again::Event(id) => {
                sqlx::query("DELETE FROM gone WHERE substr(id, 1, 8) = ?1 AND id = ?2")
                    .bind(&id.0[..8])
                    .bind(&id.0[..])
                    .execute(&mut *connection)
                    .await?;
            }
        }
    }
    for (list, item) in change.take {
        sqlx::query("DELETE FROM moderation WHERE list = ?1 AND item = ?2")
            .bind(list.name())
            .bind(item)
            .execute(&mut *connection)
            .await?;
    }
    for (list, item, text) in change.put {
        sqlx::query("INSERT OR REPLACE INTO moderation (list, item, text) VALUES (?1, ?2, ?3)")
            .bind(list.name())
            .bind(item)
            .bind(text)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// What is not remembered as gone any more.
enum Again {
    /// Everything that a rule kept out: which rule it was, nobody knows.
    Banned,
    Event(EventId),
}

/// What a change may let in that was kept out before.
fn brings_back(change: &Change) -> Vec<Again> {
    use List::{AllowedEvents, AllowedKinds, BannedEvents, BannedPubkeys, DisallowedKinds};
    let lifts =
        |list| matches!(list, BannedPubkeys | BannedEvents | DisallowedKinds | AllowedKinds);
    let lifted = change.take.iter().any(|(list, _)| lifts(*list))
        || change.put.iter().any(|(list, ..)| matches!(list, AllowedKinds | AllowedEvents));
    let events = change.put.iter().filter(|(list, ..)| *list == AllowedEvents);
    let events = events.filter_map(|(_, item, _)| EventId::parse(item).map(Again::Event));
    lifted.then_some(Again::Banned).into_iter().chain(events).collect()
}

impl ModerationStore for ModerationTable {
    fn load(&self) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        Box::pin(self.read())
    }

    fn save(&self, change: Change) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write(change))
    }
}
