//! The operator's rules on disk. They change rarely, so each change opens a connection of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::pipeline::{
    StoreError,
    moderation::{Change, ModerationStore, Stored},
};

/// How long a change may wait for the writer's commits.
const PATIENCE: Duration = Duration::from_secs(10);

/// The table `moderation` of `gateway.db`.
pub struct ModerationTable {
    path: PathBuf,
}

impl ModerationTable {
    /// In the data directory of a store that is open: opening it made the table.
    pub fn new(data_dir: &Path) -> Self {
        Self { path: data_dir.join("gateway.db") }
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
        connection.close().await
    }
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
