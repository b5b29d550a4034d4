//! Where lists come from: our own store. What relays send goes the one way in like everything else, so
//! lists are verified, judged and kept; here they are read back.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    book::{Book, Change},
    lists::{FOLLOWS, RELAY_LIST},
};
use crate::{
    pipeline::{EventReader, PrivateTopics, ScanItem, Scope, Seq, StoreError, Viewer},
    protocol::{Event, Filter, PublicKey, kinds},
};

/// Authors whose lists one query asks for.
const AUTHORS_PER_SCAN: usize = 500;
/// Log entries that are read at once.
const ENTRIES: usize = 512;

pub(super) struct Source {
    reader: Arc<dyn EventReader>,
    private: PrivateTopics,
    /// The log is read up to here.
    seq: Seq,
}

impl Source {
    /// Follows the log from its head of now on.
    pub fn new(reader: Arc<dyn EventReader>, private: PrivateTopics) -> Self {
        let seq = *reader.head().borrow();
        Self { reader, private, seq }
    }

    /// Reads all lists that the book may hold.
    ///
    /// # Errors
    /// When the store fails; what was read counts.
    pub async fn read_all(&self, book: &mut Book) -> Result<Change, StoreError> {
        let roots = book.roots().to_vec();
        let who = self.read(book, FOLLOWS, &roots).await?;
        let authors: Vec<_> = book.authors().iter().copied().collect();
        let whence = self.read(book, RELAY_LIST, &authors).await?;
        Ok(who.and(whence))
    }

    /// Reads the lists of authors who are new.
    ///
    /// # Errors
    /// When the store fails; what was read counts.
    pub async fn read_missing(&self, book: &mut Book) -> Result<Change, StoreError> {
        let authors: Vec<_> = book.without_relays().copied().collect();
        self.read(book, RELAY_LIST, &authors).await
    }

    /// Reads the lists of one kind of some authors. Of whom there is none, the book has none either.
    async fn read(
        &self,
        book: &mut Book,
        kind: u16,
        authors: &[PublicKey],
    ) -> Result<Change, StoreError> {
        let mut change = Change::Nothing;
        for authors in authors.chunks(AUTHORS_PER_SCAN) {
            let mut missing: BTreeSet<PublicKey> = authors.iter().copied().collect();
            let filter = Filter {
                kinds: Some(vec![kind]),
                authors: Some(missing.iter().copied().collect()),
                limit: Some(authors.len() as u64 + 1),
                ..Filter::default()
            };
            // Lists may be in private topics: they are the operator's own.
            let viewer = Arc::new(Viewer::new(BTreeSet::new(), true, &self.private));
            let mut scan = self.reader.scan(vec![filter], Scope::All, viewer);
            let given_up = || StoreError("the store gave up reading lists".to_owned());
            loop {
                match scan.next().await.ok_or_else(given_up)? {
                    ScanItem::Events(events) => {
                        for event in events.iter().filter_map(|json| Event::parse(json).ok()) {
                            missing.remove(&event.pubkey);
                            change = change.and(book.take(&event));
                        }
                    }
                    ScanItem::End { .. } => break,
                    ScanItem::Failed(error) => return Err(error),
                }
            }
            change = change.and(book.forget(kind, missing));
        }
        Ok(change)
    }

    /// Waits until the log has grown.
    pub async fn grown(&self) {
        let mut head = self.reader.head();
        if head.wait_for(|head| *head > self.seq).await.is_err() {
            // The store is closing; so is the stream.
            std::future::pending().await
        }
    }

    /// Reads what is new in the log.
    ///
    /// # Errors
    /// When the store fails; what was read counts.
    pub async fn read_news(&mut self, book: &mut Book) -> Result<Change, StoreError> {
        let mut change = Change::Nothing;
        let mut again = BTreeSet::new();
        loop {
            let head = *self.reader.head().borrow();
            let entries = match self.reader.recent_log_after(self.seq) {
                Some(entries) => entries,
                None => self.reader.log_after(self.seq, ENTRIES).await?,
            };
            let Some(last) = entries.last() else {
                self.seq = self.seq.max(head);
                break;
            };
            self.seq = last.seq;
            for event in entries.iter().map(|entry| &entry.event) {
                match event.kind {
                    // It may have taken a list away.
                    kinds::DELETION | kinds::VANISH if book.authors().contains(&event.pubkey) => {
                        again.insert(event.pubkey);
                    }
                    _ => change = change.and(book.take(event)),
                }
            }
        }
        let again: Vec<_> = again.into_iter().collect();
        let roots: Vec<_> = again.iter().filter(|a| book.roots().contains(a)).copied().collect();
        change = change.and(self.read(book, FOLLOWS, &roots).await?);
        change = change.and(self.read(book, RELAY_LIST, &again).await?);
        if change == Change::Authors {
            self.read_missing(book).await?;
        }
        Ok(change)
    }
}
