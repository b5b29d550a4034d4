//! The topics joined by command or visit, on disk. They change rarely, so each change opens a
//! connection of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    pipeline::{HowJoined, KeptPrivate, KeptTopic, StoreError, TopicStore},
    protocol::TopicName,
};

/// How long a change may wait for the writer's commits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Name, when it was joined, state, peers, when members were seen, whether it was left.
type PrivateRow = (String, i64, Vec<u8>, String, Vec<u8>, bool);

/// The tables `joined_topics` and `private_topics` of `gateway.db`.
pub struct JoinedTable {
    path: PathBuf,
}

impl JoinedTable {
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

    async fn read(&self) -> sqlx::Result<Vec<KeptTopic>> {
        let mut connection = self.connect().await?;
        let rows: Vec<(String, String, i64, bool)> = sqlx::query_as(
            "SELECT name, how, joined_at, private FROM joined_topics ORDER BY joined_at, name",
        )
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        // A row of a newer version that says nothing to this one is left alone.
        let topics = rows.into_iter().filter_map(|(name, how, joined_at, private)| {
            let (name, how) = (TopicName::new(&name).ok()?, HowJoined::named(&how)?);
            Some(KeptTopic { name, how, joined_at: joined_at.unsigned_abs(), private })
        });
        Ok(topics.collect())
    }

    async fn insert(&self, topic: KeptTopic) -> sqlx::Result<()> {
        let mut connection = self.connect().await?;
        sqlx::query(
            "INSERT OR REPLACE INTO joined_topics (name, how, joined_at, private) \
             VALUES (?1, ?2, ?3, ?4)",
        )
        .bind(topic.name.as_str())
        .bind(topic.how.name())
        .bind(i64::try_from(topic.joined_at).unwrap_or(i64::MAX))
        .bind(topic.private)
        .execute(&mut connection)
        .await?;
        connection.close().await
    }

    async fn read_private(&self) -> sqlx::Result<Vec<KeptPrivate>> {
        let mut connection = self.connect().await?;
        let rows: Vec<PrivateRow> = sqlx::query_as(
            "SELECT name, joined_at, state, peers, seen, is_left FROM private_topics ORDER BY name",
        )
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        let topics =
            rows.into_iter().filter_map(|(name, joined_at, state, peers, seen, is_left)| {
                let name = TopicName::new(&name).ok()?;
                let peers = peers.lines().map(str::to_owned).collect();
                let joined_at = joined_at.unsigned_abs();
                Some(KeptPrivate { name, joined_at, state, peers, seen, is_left })
            });
        Ok(topics.collect())
    }

    async fn insert_private(&self, topic: KeptPrivate) -> sqlx::Result<()> {
        let mut connection = self.connect().await?;
        sqlx::query(
            "INSERT OR REPLACE INTO private_topics (name, joined_at, state, peers, seen, is_left) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(topic.name.as_str())
        .bind(i64::try_from(topic.joined_at).unwrap_or(i64::MAX))
        .bind(topic.state)
        .bind(topic.peers.join("\n"))
        .bind(topic.seen)
        .bind(topic.is_left)
        .execute(&mut connection)
        .await?;
        connection.close().await
    }

    async fn delete(&self, name: TopicName) -> sqlx::Result<()> {
        let mut connection = self.connect().await?;
        sqlx::query("DELETE FROM joined_topics WHERE name = ?1")
            .bind(name.as_str())
            .execute(&mut connection)
            .await?;
        connection.close().await
    }
}

impl TopicStore for JoinedTable {
    fn private(&self) -> BoxFuture<'_, Result<Vec<KeptPrivate>, StoreError>> {
        Box::pin(async { self.read_private().await.map_err(failed) })
    }

    fn keep_private(&self, topic: KeptPrivate) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.insert_private(topic).await.map_err(failed) })
    }

    fn load(&self) -> BoxFuture<'_, Result<Vec<KeptTopic>, StoreError>> {
        Box::pin(async { self.read().await.map_err(failed) })
    }

    fn keep(&self, topic: KeptTopic) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.insert(topic).await.map_err(failed) })
    }

    fn forget(&self, name: TopicName) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.delete(name).await.map_err(failed) })
    }
}

fn failed(error: sqlx::Error) -> StoreError {
    StoreError(error.to_string())
}
