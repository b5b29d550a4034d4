//! Gateways that were reached before, on disk.

use std::path::Path;

use futures_util::future::BoxFuture;

use super::rare::RareTables;
use crate::{
    pipeline::{
        PeerId, PeerStore, RememberedPeer, StoreError,
        remembered::{MAX_OF_TOPIC, MAX_REMEMBERED},
    },
    protocol::TopicName,
};

/// The table `peers` of `gateway.db`.
pub struct PeerTable(RareTables);

type Row = (Vec<u8>, String, String, bool, i64, i64);

impl PeerTable {
    /// In the data directory of a store that is open: opening it made the table.
    pub fn new(data_dir: &Path) -> Self {
        Self(RareTables::new(data_dir))
    }

    async fn read(&self, topic: TopicName) -> Result<Vec<RememberedPeer>, StoreError> {
        let question = sqlx::query_as(
            "SELECT peer, addresses, found_by, over_relay, reached_at, failures FROM peers \
             WHERE topic = ?1 ORDER BY reached_at DESC, peer LIMIT ?2",
        )
        .bind(topic.to_string())
        .bind(bound(MAX_OF_TOPIC));
        let rows: Vec<Row> = self.0.read(|c| Box::pin(question.fetch_all(c))).await?;
        let peers = rows.into_iter().filter_map(|row| {
            let (peer, addresses, found_by, over_relay, reached_at, failures) = row;
            Some(RememberedPeer {
                topic: topic.clone(),
                peer: PeerId(peer.try_into().ok()?),
                addresses: addresses.lines().map(str::to_owned).collect(),
                found_by,
                over_relay,
                reached_at: reached_at.unsigned_abs(),
                failures: u32::try_from(failures).unwrap_or(u32::MAX),
            })
        });
        Ok(peers.collect())
    }

    async fn insert(&self, peer: RememberedPeer) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT OR REPLACE INTO peers \
             (topic, peer, addresses, found_by, over_relay, reached_at, failures) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(peer.topic.to_string())
        .bind(peer.peer.0.to_vec())
        .bind(peer.addresses.join("\n"))
        .bind(peer.found_by)
        .bind(peer.over_relay)
        .bind(i64::try_from(peer.reached_at).unwrap_or(i64::MAX))
        .bind(i64::from(peer.failures));
        let forget_of_topic = sqlx::query(
            "DELETE FROM peers WHERE topic = ?1 AND peer IN (SELECT peer FROM peers \
             WHERE topic = ?1 ORDER BY reached_at DESC, peer LIMIT -1 OFFSET ?2)",
        )
        .bind(peer.topic.to_string())
        .bind(bound(MAX_OF_TOPIC));
        let forget = sqlx::query(
            "DELETE FROM peers WHERE (topic, peer) IN (SELECT topic, peer FROM peers \
             ORDER BY reached_at DESC LIMIT -1 OFFSET ?1)",
        )
        .bind(bound(MAX_REMEMBERED));
        let change = self.0.change(|c| {
            Box::pin(async move {
                for statement in [insert, forget_of_topic, forget] {
                    statement.execute(&mut *c).await?;
                }
                Ok(())
            })
        });
        change.await
    }

    async fn count(&self, topic: TopicName, peers: Vec<PeerId>) -> Result<(), StoreError> {
        let change = self.0.change(|c| {
            Box::pin(async move {
                for peer in peers {
                    sqlx::query(
                        "UPDATE peers SET failures = failures + 1 WHERE topic = ?1 AND peer = ?2",
                    )
                    .bind(topic.as_str())
                    .bind(&peer.0[..])
                    .execute(&mut *c)
                    .await?;
                }
                Ok(())
            })
        });
        change.await
    }
}

impl PeerStore for PeerTable {
    fn load(&self, topic: TopicName) -> BoxFuture<'_, Result<Vec<RememberedPeer>, StoreError>> {
        Box::pin(self.read(topic))
    }

    fn reached(&self, peer: RememberedPeer) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.insert(peer))
    }

    fn missed(
        &self,
        topic: TopicName,
        peers: Vec<PeerId>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.count(topic, peers))
    }
}

fn bound(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

    use super::*;
    use crate::store::open::migrate;

    fn peer(topic: &str, number: u32, reached_at: u64) -> RememberedPeer {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        RememberedPeer {
            topic: TopicName::new(topic).unwrap(),
            peer: PeerId(id),
            addresses: vec!["192.0.2.1:4433".into(), "https://iroh.example/".into()],
            found_by: "dht".into(),
            over_relay: false,
            reached_at,
            failures: 0,
        }
    }

    #[tokio::test]
    async fn peers_are_remembered_by_topic_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        migrate(&dir.path().join("gateway.db")).await.unwrap();
        let table = PeerTable::new(dir.path());
        let town = TopicName::new("town").unwrap();
        assert_eq!(table.load(town.clone()).await.unwrap(), []);
        for number in 0..70 {
            table.reached(peer("town", number, 1_000 + u64::from(number))).await.unwrap();
        }
        table.reached(peer("village", 1, 5)).await.unwrap();
        let known = table.load(town.clone()).await.unwrap();
        assert_eq!(known.len(), MAX_OF_TOPIC);
        assert_eq!(known[0], peer("town", 69, 1_069));
        assert_eq!(known.last().unwrap().reached_at, 1_006, "the oldest were forgotten");
        assert_eq!(table.load(TopicName::new("village").unwrap()).await.unwrap().len(), 1);

        let (one, unknown) = (known[0].peer, PeerId([9; 32]));
        table.missed(town.clone(), vec![one, unknown]).await.unwrap();
        table.missed(town.clone(), vec![one]).await.unwrap();
        let known = table.load(town.clone()).await.unwrap();
        assert_eq!((known[0].failures, known[1].failures, known.len()), (2, 0, MAX_OF_TOPIC));
        // Reached again, it has a clean slate and is the newest.
        table.reached(peer("town", 30, 2_000)).await.unwrap();
        let known = table.load(town).await.unwrap();
        assert_eq!((known[0].reached_at, known.len()), (2_000, MAX_OF_TOPIC));
    }

    #[tokio::test]
    async fn over_all_topics_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.db");
        migrate(&path).await.unwrap();
        let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
        sqlx::query(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 4999) \
             INSERT INTO peers SELECT 't' || (i / 50), randomblob(32), '', 'dht', 0, i, 0 FROM n",
        )
        .execute(&mut connection)
        .await
        .unwrap();
        PeerTable::new(dir.path()).reached(peer("new", 1, 9_000)).await.unwrap();
        let (count, oldest): (i64, i64) =
            sqlx::query_as("SELECT count(*), min(reached_at) FROM peers")
                .fetch_one(&mut connection)
                .await
                .unwrap();
        assert_eq!((count, oldest), (4_096, 905));
    }
}
