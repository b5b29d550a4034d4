//! The topics joined by command or visit, on disk.

use std::path::Path;

use futures_util::future::BoxFuture;

use super::rare::RareTables;
use crate::{
    pipeline::{HowJoined, KeptPrivate, KeptTopic, StoreError, TopicStore},
    protocol::TopicName,
};

/// Name, how and when it was joined, whether it is private.
type Row = (String, String, i64, bool);
/// Name, when it was joined, state, peers, when members were seen, whether it was left.
type PrivateRow = (String, i64, Vec<u8>, String, Vec<u8>, bool);

/// The tables `joined_topics` and `private_topics` of `gateway.db`.
pub struct JoinedTable(RareTables);

impl JoinedTable {
    /// In the data directory of a store that is open: opening it made the table.
    pub fn new(data_dir: &Path) -> Self {
        Self(RareTables::new(data_dir))
    }

    async fn read(&self) -> Result<Vec<KeptTopic>, StoreError> {
        let question = "SELECT name, how, joined_at, private FROM joined_topics \
                        ORDER BY joined_at, name";
        let rows: Vec<Row> =
            self.0.read(|c| Box::pin(sqlx::query_as(question).fetch_all(c))).await?;
        // A row of a newer version that says nothing to this one is left alone.
        let topics = rows.into_iter().filter_map(|(name, how, joined_at, private)| {
            let (name, how) = (TopicName::new(&name).ok()?, HowJoined::named(&how)?);
            Some(KeptTopic { name, how, joined_at: joined_at.unsigned_abs(), private })
        });
        Ok(topics.collect())
    }

    async fn insert(&self, topic: KeptTopic) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT OR REPLACE INTO joined_topics (name, how, joined_at, private) \
             VALUES (?1, ?2, ?3, ?4)",
        )
        .bind(topic.name.to_string())
        .bind(topic.how.name())
        .bind(i64::try_from(topic.joined_at).unwrap_or(i64::MAX))
        .bind(topic.private);
        self.0.change(|c| Box::pin(insert.execute(c))).await.map(drop)
    }

    async fn read_private(&self) -> Result<Vec<KeptPrivate>, StoreError> {
        let question =
            "SELECT name, joined_at, state, peers, seen, is_left FROM private_topics ORDER BY name";
        let rows: Vec<PrivateRow> =
            self.0.read(|c| Box::pin(sqlx::query_as(question).fetch_all(c))).await?;
        let topics =
            rows.into_iter().filter_map(|(name, joined_at, state, peers, seen, is_left)| {
                let name = TopicName::new(&name).ok()?;
                let peers = peers.lines().map(str::to_owned).collect();
                let joined_at = joined_at.unsigned_abs();
                Some(KeptPrivate { name, joined_at, state, peers, seen, is_left })
            });
        Ok(topics.collect())
    }

    async fn insert_private(&self, topic: KeptPrivate) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT OR REPLACE INTO private_topics (name, joined_at, state, peers, seen, is_left) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(topic.name.to_string())
        .bind(i64::try_from(topic.joined_at).unwrap_or(i64::MAX))
        .bind(topic.state)
        .bind(topic.peers.join("\n"))
        .bind(topic.seen)
        .bind(topic.is_left);
        self.0.change(|c| Box::pin(insert.execute(c))).await.map(drop)
    }

    async fn delete(&self, name: TopicName) -> Result<bool, StoreError> {
        let delete =
            sqlx::query("DELETE FROM joined_topics WHERE name = ?1").bind(name.to_string());
        let deleted = self.0.change(|c| Box::pin(delete.execute(c))).await?;
        Ok(deleted.rows_affected() > 0)
    }
}

impl TopicStore for JoinedTable {
    fn private(&self) -> BoxFuture<'_, Result<Vec<KeptPrivate>, StoreError>> {
        Box::pin(self.read_private())
    }

    fn keep_private(&self, topic: KeptPrivate) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.insert_private(topic))
    }

    fn load(&self) -> BoxFuture<'_, Result<Vec<KeptTopic>, StoreError>> {
        Box::pin(self.read())
    }

    fn keep(&self, topic: KeptTopic) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.insert(topic))
    }

    fn forget(&self, name: TopicName) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.delete(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::migrate;

    #[tokio::test]
    async fn topics_are_kept_in_order_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        migrate(&dir.path().join("gateway.db")).await.unwrap();
        let table = JoinedTable::new(dir.path());
        let name = |text: &str| TopicName::new(text).unwrap();
        let topic = |text: &str, how, joined_at| KeptTopic {
            name: name(text),
            how,
            joined_at,
            private: false,
        };
        let (cats, dogs) =
            (topic("cats", HowJoined::Visit, 7), topic("dogs", HowJoined::Command, 5));
        table.keep(cats.clone()).await.unwrap();
        table.keep(dogs.clone()).await.unwrap();
        assert_eq!(table.load().await.unwrap(), [dogs.clone(), cats]);
        let cats = topic("cats", HowJoined::Command, 7);
        table.keep(cats.clone()).await.unwrap();
        assert_eq!(table.load().await.unwrap(), [dogs, cats.clone()]);
        assert!(table.forget(name("dogs")).await.unwrap());
        assert!(!table.forget(name("dogs")).await.unwrap(), "it is not there any more");
        assert_eq!(table.load().await.unwrap(), [cats]);

        let den = KeptPrivate {
            name: name("den"),
            joined_at: 9,
            state: vec![1, 2, 3],
            peers: vec!["one".to_owned(), "two".to_owned()],
            seen: vec![4; 40],
            is_left: false,
        };
        table.keep_private(den.clone()).await.unwrap();
        let left = KeptPrivate { is_left: true, ..den };
        table.keep_private(left.clone()).await.unwrap();
        assert_eq!(table.private().await.unwrap(), [left]);
        assert!(!table.forget(name("den")).await.unwrap(), "it is no public one");
    }
}
