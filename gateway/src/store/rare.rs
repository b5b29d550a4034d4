//! Connections for what is read and written rarely: the operator's rules, joined topics, remembered
//! peers. Each question and each change opens one of its own (sqlx; see `ARCHITECTURE.md`).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::pipeline::StoreError;

/// How long a change may wait for the commits of others. The writer's take milliseconds, a long
/// removal or a copy of the file by another program takes seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// SQLite's result code for a lock that was not to be had in time; extended codes have it in their
/// last byte.
const BUSY: i32 = 5;

/// The way to the tables that change rarely in `gateway.db`.
pub(super) struct RareTables {
    path: PathBuf,
    patience: Duration,
}

impl RareTables {
    /// In the data directory of a store that is open: opening it made the tables.
    pub fn new(data_dir: &Path) -> Self {
        Self { path: data_dir.join("gateway.db"), patience: PATIENCE }
    }

    /// # Errors
    /// When the database does not answer, or not in time.
    pub async fn read<T>(
        &self,
        question: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<T>>,
    ) -> Result<T, StoreError> {
        let read = async {
            let mut connection = self.connect().await?;
            let answer = question(&mut connection).await?;
            // It has told all that it had to.
            let _ = connection.close().await;
            Ok(answer)
        };
        read.await.map_err(|error| self.failed(&error))
    }

    /// Makes a change whole or not at all, and durably. Waits for a database that is busy.
    ///
    /// # Errors
    /// When it was not made: the database fails, or was busy all the time.
    pub async fn change<T>(
        &self,
        change: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<T>>,
    ) -> Result<T, StoreError> {
        let made = async {
            let mut connection = self.connect().await?;
            // Written to from the start: a transaction that begins by reading may find that it may
            // not, and then no waiting helps.
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let result = change(&mut transaction).await?;
            transaction.commit().await?;
            // What was committed is not undone by a connection that does not close.
            let _ = connection.close().await;
            Ok(result)
        };
        made.await.map_err(|error| self.failed(&error))
    }

    async fn connect(&self) -> sqlx::Result<SqliteConnection> {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(self.patience)
            .disable_statement_logging()
            .connect()
            .await
    }

    fn failed(&self, error: &sqlx::Error) -> StoreError {
        let code = error.as_database_error().and_then(|error| error.code());
        let is_busy =
            code.and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == BUSY);
        if is_busy {
            let patience = self.patience;
            return StoreError(format!(
                "the database was busy for {patience:?}: another program, or a long removal, \
                 holds it; try again"
            ));
        }
        StoreError(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::migrate;

    fn put(
        name: &'static str,
    ) -> impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<()>> {
        move |connection| {
            Box::pin(async move {
                sqlx::query("INSERT INTO joined_topics (name, how, joined_at, private) VALUES (?1, 'command', 1, 0)")
                    .bind(name)
                    .execute(connection)
                    .await
                    .map(drop)
            })
        }
    }

    async fn names(tables: &RareTables) -> Vec<String> {
        let read = tables.read(|connection| {
            Box::pin(
                sqlx::query_scalar("SELECT name FROM joined_topics ORDER BY name")
                    .fetch_all(connection),
            )
        });
        read.await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_waits_for_a_busy_database_or_says_that_it_was_not_made() {
        let dir = tempfile::tempdir().unwrap();
        migrate(&dir.path().join("gateway.db")).await.unwrap();
        let mut tables = RareTables::new(dir.path());
        assert!(tables.patience >= Duration::from_secs(5));
        let lock = || {
            let holder = rusqlite::Connection::open(dir.path().join("gateway.db")).unwrap();
            holder.execute_batch("BEGIN IMMEDIATE").unwrap();
            holder
        };

        let holder = lock();
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            holder.execute_batch("COMMIT").unwrap();
        };
        let (made, ()) = tokio::join!(tables.change(put("waited")), let_go);
        made.unwrap();
        assert_eq!(names(&tables).await, ["waited"]);

        tables.patience = Duration::from_millis(200);
        let holder = lock();
        let error = tables.change(put("late")).await.unwrap_err();
        assert!(error.0.contains("busy for 200ms"), "{error}");
        assert_eq!(names(&tables).await, ["waited"], "who only reads waits for nobody");
        holder.execute_batch("COMMIT").unwrap();
        tables.change(put("late")).await.unwrap();
        assert_eq!(names(&tables).await, ["late", "waited"]);
    }

    #[tokio::test]
    async fn a_change_that_fails_leaves_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        migrate(&dir.path().join("gateway.db")).await.unwrap();
        let tables = RareTables::new(dir.path());
        let halfway = tables.change(|connection| {
            Box::pin(async move {
                put("half")(connection).await?;
                sqlx::query("INSERT INTO nowhere VALUES (1)").execute(connection).await.map(drop)
            })
        });
        let error = halfway.await.unwrap_err();
        assert!(error.0.contains("nowhere"), "{error}");
        assert!(names(&tables).await.is_empty());
    }
}
