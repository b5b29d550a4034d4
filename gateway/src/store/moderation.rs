//! The operator's rules on disk. They change rarely, so each change opens a connection of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{gone::BANNED, memory::Memory};
use crate::{
    pipeline::{
        StoreError,
        moderation::{Change, List, ModerationStore, Stored},
    },
    protocol::EventId,
};

/// How long a change may wait for the writer's commits.
const PATIENCE: Duration = Duration::from_secs(10);

/// The table `moderation` of `gateway.db`.
pub struct ModerationTable {
    path: PathBuf,
    memory: Arc<Memory>,
}

impl ModerationTable {
    /// In the data directory of a store that is open: opening it made the table.
    pub(super) fn new(data_dir: &Path, memory: Arc<Memory>) -> Self {
        Self { path: data_dir.join("gateway.db"), memory }
    }

    async fn connect(&self) -> sqlx::Result<SqliteConnection> {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(PATIENCE)
            .disable_statement_logging()
            .connect()
            .await
    }

    async fn read(&self) -> sqlx::Result<Vec<Stored>> {
        let mut connection = self.connect().await?;
        let entries = sqlx::query_as("SELECT list, item, text FROM moderation")
            .fetch_all(&mut connection)
            .await?;
        connection.close().await?;
        Ok(entries)
    }

    async fn write(&self, change: Change) -> sqlx::Result<()> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let again = brings_back(&change);
        let is_again = !again.is_empty();
        for statement in again {
            match statement {
                Again::Banned => {
                    sqlx::query("DELETE FROM gone WHERE cause & 15 = ?1")
                        .bind(BANNED)
                        .execute(&mut *transaction)
                        .await?;
                }
                Again::Event(id) => {
                    sqlx::query("DELETE FROM gone WHERE substr(id, 1, 8) = ?1 AND id = ?2")
                        .bind(&id.0[..8])
                        .bind(&id.0[..])
                        .execute(&mut *transaction)
                        .await?;
                }
            }
        }
        for (list, item) in change.take {
            sqlx::query("DELETE FROM moderation WHERE list = ?1 AND item = ?2")
                .bind(list.name())
                .bind(item)
                .execute(&mut *transaction)
                .await?;
        }
        for (list, item, text) in change.put {
            sqlx::query("INSERT OR REPLACE INTO moderation (list, item, text) VALUES (?1, ?2, ?3)")
                .bind(list.name())
                .bind(item)
                .bind(text)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        if is_again {
            self.memory.versions.raise_all();
        }
        connection.close().await
    }
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
        Box::pin(async { self.read().await.map_err(failed) })
    }

    fn save(&self, change: Change) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.write(change).await.map_err(failed) })
    }
}

fn failed(error: sqlx::Error) -> StoreError {
    StoreError(error.to_string())
}
