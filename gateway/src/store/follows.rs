//! Who is asked for at which relay by streams that follow public keys, on disk.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use futures_util::future::BoxFuture;

use super::rare::RareTables;
use crate::{
    clock::unix_now,
    pipeline::{
        StoreError,
        follows::{FollowStore, MAX_GROUPS, SavedGroup},
    },
    protocol::PublicKey,
};

/// The table `upstream_groups` of `gateway.db`.
pub struct FollowTable(RareTables);

impl FollowTable {
    /// In the data directory of a store that is open: opening it made the table.
    pub fn new(data_dir: &Path) -> Self {
        Self(RareTables::new(data_dir))
    }

    async fn read(&self, stream: Arc<str>) -> Result<Vec<SavedGroup>, StoreError> {
        let question = sqlx::query_as(
            "SELECT url, lists, open, id, authors FROM upstream_groups WHERE stream = ?1 \
             ORDER BY url, lists, id",
        )
        .bind(stream.to_string());
        let rows: Vec<(String, bool, bool, i64, Vec<u8>)> =
            self.0.read(|c| Box::pin(question.fetch_all(c))).await?;
        let group = |(url, lists, open, id, authors): (String, bool, bool, i64, Vec<u8>)| {
            let (keys, _) = authors.as_chunks::<32>();
            let authors = keys.iter().map(|key| PublicKey(*key)).collect();
            SavedGroup { url: url.into(), lists, open, id: id.cast_unsigned(), authors }
        };
        Ok(rows.into_iter().map(group).collect())
    }

    async fn write(
        &self,
        stream: Arc<str>,
        relays: Vec<Arc<str>>,
        groups: Vec<SavedGroup>,
    ) -> Result<(), StoreError> {
        let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
        let change = self.0.change(|c| {
            Box::pin(async move {
                for url in &relays {
                    sqlx::query("DELETE FROM upstream_groups WHERE stream = ?1 AND url = ?2")
                        .bind(&*stream)
                        .bind(&**url)
                        .execute(&mut *c)
                        .await?;
                }
                for group in &groups {
                    sqlx::query(
                        "INSERT INTO upstream_groups (stream, url, lists, open, id, authors, \
                         written_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )
                    .bind(&*stream)
                    .bind(&*group.url)
                    .bind(group.lists)
                    .bind(group.open)
                    .bind(group.id.cast_signed())
                    .bind(blob(&group.authors))
                    .bind(now)
                    .execute(&mut *c)
                    .await?;
                }
                sqlx::query(
                    "DELETE FROM upstream_groups WHERE (stream, url, lists, id) IN (SELECT stream, \
                     url, lists, id FROM upstream_groups \
                     ORDER BY written_at DESC, stream, url, lists, id LIMIT -1 OFFSET ?1)",
                )
                .bind(i64::try_from(MAX_GROUPS).unwrap_or(i64::MAX))
                .execute(c)
                .await
                .map(drop)
            })
        });
        change.await
    }
}

impl FollowStore for FollowTable {
    fn groups(&self, stream: Arc<str>) -> BoxFuture<'_, Result<Vec<SavedGroup>, StoreError>> {
        Box::pin(self.read(stream))
    }

    fn regrouped(
        &self,
        stream: Arc<str>,
        relays: Vec<Arc<str>>,
        groups: Vec<SavedGroup>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write(stream, relays, groups))
    }
}

fn blob(authors: &BTreeSet<PublicKey>) -> Vec<u8> {
    authors.iter().flat_map(|author| author.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::migrate;

    fn group(url: &str, lists: bool, id: u64, authors: &[u8]) -> SavedGroup {
        let authors = authors.iter().map(|number| PublicKey([*number; 32])).collect();
        SavedGroup { url: url.into(), lists, open: id % 2 == 1, id, authors }
    }

    #[tokio::test]
    async fn groups_are_kept_for_each_relay_of_each_stream() {
        let dir = tempfile::tempdir().unwrap();
        migrate(&dir.path().join("gateway.db")).await.unwrap();
        let table = FollowTable::new(dir.path());
        let (a, b): (Arc<str>, Arc<str>) = ("wss://a".into(), "wss://b".into());
        let all = vec![
            group("wss://a", false, 1, &[1, 2]),
            group("wss://a", true, 1, &[1, 2, 3]),
            group("wss://b", false, u64::MAX, &[4]),
        ];
        table.regrouped("s".into(), vec![a.clone(), b.clone()], all.clone()).await.unwrap();
        let mut read = table.groups("s".into()).await.unwrap();
        read.sort_by_key(|group| (group.url.clone(), group.lists));
        assert_eq!(read, all);
        assert!(table.groups("t".into()).await.unwrap().is_empty());

        let less = vec![group("wss://a", false, 1, &[1])];
        table.regrouped("s".into(), vec![a], less.clone()).await.unwrap();
        table.regrouped("t".into(), vec![b], Vec::new()).await.unwrap();
        assert_eq!(table.groups("s".into()).await.unwrap(), [less[0].clone(), all[2].clone()]);
    }
}
