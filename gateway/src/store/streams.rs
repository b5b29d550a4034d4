//! How far streams from and to other relays have come, on disk.

use std::{path::Path, sync::Arc};

use futures_util::future::BoxFuture;

use super::rare::RareTables;
use crate::{
    clock::unix_now,
    pipeline::{
        Span, StoreError,
        streams::{
            DroppedEvent, MAX_CURSORS, MAX_DROPPED, MAX_REASON, MAX_SPANS, Part, StreamRelay,
            UpCursor, UpstreamStore,
        },
    },
    protocol::EventId,
};

/// The tables `upstream_*` of `gateway.db`.
pub struct UpstreamTables(RareTables);

impl UpstreamTables {
    /// In the data directory of a store that is open: opening it made the tables.
    pub fn new(data_dir: &Path) -> Self {
        Self(RareTables::new(data_dir))
    }

    async fn read_down(&self, of: StreamRelay, part: Part) -> Result<Vec<Span>, StoreError> {
        let question = sqlx::query_scalar(
            "SELECT complete FROM upstream_down WHERE stream = ?1 AND url = ?2 AND part = ?3",
        )
        .bind(of.stream.to_string())
        .bind(of.url.to_string())
        .bind(part.cast_signed());
        let complete: Option<Vec<u8>> =
            self.0.read(|c| Box::pin(question.fetch_optional(c))).await?;
        Ok(spans(&complete.unwrap_or_default()))
    }

    async fn write_down(
        &self,
        of: StreamRelay,
        part: Part,
        complete: Vec<Span>,
    ) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT OR REPLACE INTO upstream_down (stream, url, part, complete, written_at) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .bind(of.stream.to_string())
        .bind(of.url.to_string())
        .bind(part.cast_signed())
        .bind(blob(&complete))
        .bind(number(unix_now()));
        let forget = sqlx::query(
            "DELETE FROM upstream_down WHERE (stream, url, part) IN (SELECT stream, url, part \
             FROM upstream_down ORDER BY written_at DESC, stream, url, part LIMIT -1 OFFSET ?1)",
        )
        .bind(number(MAX_CURSORS as u64));
        let change = self.0.change(|c| {
            Box::pin(async move {
                insert.execute(&mut *c).await?;
                forget.execute(&mut *c).await.map(drop)
            })
        });
        change.await
    }

    async fn read_up(&self, of: StreamRelay) -> Result<Option<UpCursor>, StoreError> {
        let question = sqlx::query_as(
            "SELECT seq, began, since FROM upstream_up WHERE stream = ?1 AND url = ?2",
        )
        .bind(of.stream.to_string())
        .bind(of.url.to_string());
        let row: Option<(i64, i64, i64)> =
            self.0.read(|c| Box::pin(question.fetch_optional(c))).await?;
        Ok(row.map(|(seq, began, since)| UpCursor {
            seq: seq.cast_unsigned(),
            began: began.cast_unsigned(),
            since: since.cast_unsigned(),
        }))
    }

    async fn write_up(
        &self,
        of: StreamRelay,
        cursor: UpCursor,
        dropped: Vec<DroppedEvent>,
    ) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT OR REPLACE INTO upstream_up (stream, url, seq, began, since, written_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(of.stream.to_string())
        .bind(of.url.to_string())
        .bind(number(cursor.seq))
        .bind(number(cursor.began))
        .bind(number(cursor.since))
        .bind(number(unix_now()));
        let forget = sqlx::query(
            "DELETE FROM upstream_up WHERE (stream, url) IN (SELECT stream, url FROM upstream_up \
             ORDER BY written_at DESC, stream, url LIMIT -1 OFFSET ?1)",
        )
        .bind(number(MAX_CURSORS as u64));
        let change = self.0.change(|c| {
            Box::pin(async move {
                insert.execute(&mut *c).await?;
                forget.execute(&mut *c).await?;
                // Only the last of them would stay.
                let skipped = dropped.len().saturating_sub(MAX_DROPPED);
                for event in dropped.iter().skip(skipped) {
                    sqlx::query(
                        "INSERT INTO upstream_dropped (stream, url, id, at, reason) \
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                    )
                    .bind(&*of.stream)
                    .bind(&*event.url)
                    .bind(&event.id.0[..])
                    .bind(number(event.at))
                    .bind(event.reason.chars().take(MAX_REASON).collect::<String>())
                    .execute(&mut *c)
                    .await?;
                }
                if dropped.is_empty() {
                    return Ok(());
                }
                sqlx::query(
                    "DELETE FROM upstream_dropped WHERE stream = ?1 AND number IN (SELECT number \
                     FROM upstream_dropped WHERE stream = ?1 ORDER BY number DESC LIMIT -1 OFFSET ?2)",
                )
                .bind(&*of.stream)
                .bind(number(MAX_DROPPED as u64))
                .execute(&mut *c)
                .await
                .map(drop)
            })
        });
        change.await
    }

    async fn read_dropped(&self, stream: Arc<str>) -> Result<Vec<DroppedEvent>, StoreError> {
        let question = sqlx::query_as(
            "SELECT url, id, at, reason FROM upstream_dropped WHERE stream = ?1 \
             ORDER BY number DESC LIMIT ?2",
        )
        .bind(stream.to_string())
        .bind(number(MAX_DROPPED as u64));
        let rows: Vec<(String, Vec<u8>, i64, String)> =
            self.0.read(|c| Box::pin(question.fetch_all(c))).await?;
        let events = rows.into_iter().filter_map(|(url, id, at, reason)| {
            let id = EventId(id.try_into().ok()?);
            Some(DroppedEvent { url: url.into(), id, at: at.cast_unsigned(), reason })
        });
        Ok(events.collect())
    }

    async fn read_paused(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let question = sqlx::query_as("SELECT stream, since FROM upstream_paused ORDER BY stream");
        let rows: Vec<(String, i64)> = self.0.read(|c| Box::pin(question.fetch_all(c))).await?;
        Ok(rows.into_iter().map(|(stream, since)| (stream, since.cast_unsigned())).collect())
    }

    async fn write_paused(&self, stream: Arc<str>, since: Option<u64>) -> Result<(), StoreError> {
        let change = match since {
            Some(since) => sqlx::query(
                "INSERT INTO upstream_paused (stream, since) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )
            .bind(stream.to_string())
            .bind(number(since)),
            None => sqlx::query("DELETE FROM upstream_paused WHERE stream = ?1")
                .bind(stream.to_string()),
        };
        self.0.change(|c| Box::pin(async move { change.execute(c).await.map(drop) })).await
    }
}

impl UpstreamStore for UpstreamTables {
    fn down(&self, of: StreamRelay, part: Part) -> BoxFuture<'_, Result<Vec<Span>, StoreError>> {
        Box::pin(self.read_down(of, part))
    }

    fn down_reached(
        &self,
        of: StreamRelay,
        part: Part,
        complete: Vec<Span>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write_down(of, part, complete))
    }

    fn up(&self, of: StreamRelay) -> BoxFuture<'_, Result<Option<UpCursor>, StoreError>> {
        Box::pin(self.read_up(of))
    }

    fn up_reached(
        &self,
        of: StreamRelay,
        cursor: UpCursor,
        dropped: Vec<DroppedEvent>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write_up(of, cursor, dropped))
    }

    fn dropped(&self, stream: Arc<str>) -> BoxFuture<'_, Result<Vec<DroppedEvent>, StoreError>> {
        Box::pin(self.read_dropped(stream))
    }

    fn paused(&self) -> BoxFuture<'_, Result<Vec<(String, u64)>, StoreError>> {
        Box::pin(self.read_paused())
    }

    fn pause(&self, stream: Arc<str>, since: Option<u64>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write_paused(stream, since))
    }
}

/// Numbers that SQLite cannot hold are of nobody's clock or log.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn blob(complete: &[Span]) -> Vec<u8> {
    let newest = &complete[complete.len().saturating_sub(MAX_SPANS)..];
    let both = newest.iter().flat_map(|span| [span.from, span.until]);
    both.flat_map(u64::to_be_bytes).collect()
}

fn spans(blob: &[u8]) -> Vec<Span> {
    let (numbers, _) = blob.as_chunks::<8>();
    let (pairs, _) = numbers.as_chunks::<2>();
    let span = |[from, until]: &[[u8; 8]; 2]| Span {
        from: u64::from_be_bytes(*from),
        until: u64::from_be_bytes(*until),
    };
    pairs.iter().map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::migrate;

    async fn tables() -> (tempfile::TempDir, UpstreamTables) {
        let dir = tempfile::tempdir().unwrap();
        migrate(&dir.path().join("gateway.db")).await.unwrap();
        let tables = UpstreamTables::new(dir.path());
        (dir, tables)
    }

    fn relay(stream: &str, url: &str) -> StreamRelay {
        StreamRelay { stream: stream.into(), url: url.into() }
    }

    #[tokio::test]
    async fn cursors_are_of_one_stream_and_relay() {
        let (_dir, tables) = tables().await;
        let (a, b) = (relay("s", "wss://a"), relay("s", "wss://b"));
        assert_eq!(tables.down(a.clone(), u64::MAX).await.unwrap(), []);
        let complete = vec![Span { from: 0, until: 7 }, Span { from: 9, until: u64::MAX }];
        tables.down_reached(a.clone(), u64::MAX, complete.clone()).await.unwrap();
        assert_eq!(tables.down(a.clone(), u64::MAX).await.unwrap(), complete);
        assert_eq!(tables.down(a.clone(), 1).await.unwrap(), []);
        assert_eq!(tables.down(b.clone(), u64::MAX).await.unwrap(), []);

        let up = UpCursor { seq: 5, began: 3, since: 1_700_000_000 };
        tables.up_reached(b.clone(), up, Vec::new()).await.unwrap();
        let on = UpCursor { seq: 6, ..up };
        tables.up_reached(b.clone(), on, Vec::new()).await.unwrap();
        assert_eq!(tables.up(b).await.unwrap(), Some(on));
        assert_eq!(tables.up(a).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_oldest_spans_and_drops_are_forgotten() {
        let (_dir, tables) = tables().await;
        let of = relay("s", "wss://a");
        let span = |n: u64| Span { from: 10 * n, until: 10 * n + 1 };
        let complete: Vec<Span> = (0..20).map(span).collect();
        tables.down_reached(of.clone(), 1, complete.clone()).await.unwrap();
        assert_eq!(tables.down(of.clone(), 1).await.unwrap(), complete[20 - MAX_SPANS..]);

        let event = |n: u8| DroppedEvent {
            url: "wss://a".into(),
            id: EventId([n; 32]),
            at: u64::from(n),
            reason: "x".repeat(1_000),
        };
        let up = UpCursor { seq: 1, began: 0, since: 0 };
        let other = relay("t", "wss://a");
        tables.up_reached(other, up, vec![event(200)]).await.unwrap();
        for n in 0..3 {
            let dropped = (0..60).map(|m| event(60 * n + m)).collect();
            tables.up_reached(of.clone(), up, dropped).await.unwrap();
        }
        let dropped = tables.dropped("s".into()).await.unwrap();
        let at: Vec<u64> = dropped.iter().map(|event| event.at).collect();
        assert_eq!(at, (80..180).rev().collect::<Vec<_>>());
        assert_eq!(dropped[0].reason.len(), MAX_REASON);
        assert_eq!(tables.dropped("t".into()).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_pause_lasts_until_it_is_ended() {
        let (_dir, tables) = tables().await;
        tables.pause("s".into(), Some(7)).await.unwrap();
        tables.pause("s".into(), Some(9)).await.unwrap();
        assert_eq!(tables.paused().await.unwrap(), [("s".to_owned(), 7)]);
        tables.pause("s".into(), None).await.unwrap();
        assert!(tables.paused().await.unwrap().is_empty());
    }
}
