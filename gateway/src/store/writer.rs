//! The one writer: takes what is waiting, commits it as a group, then says so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    gone,
    known::prefix,
    memory::Memory,
    names::Names,
    open, presence, privacy, remove, requests, spare,
    tag_keys::tag_keys,
    tail::Tail,
    tombstones::{self, Tombstone},
    versions::Changed,
    writes::{Answer, Order},
};
use crate::{
    metrics::Metrics,
    pipeline::{Audience, Committed, Gone, LogEntry, Seq, StoreError, Write},
    protocol::{
        Event, EventId, TopicName, kinds,
        kinds::{Class, Part},
    },
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

/// The most orders of one commit. In a large store each event changes a few pages that no other event of
/// its group does, so what a commit writes grows more slowly than its group.
const MAX_GROUP: usize = 2_048;
/// How long a commit may wait for events that are under way: about as long as a core takes to verify
/// half of them, within these bounds. And without any for the shorter one, however many there are: they
/// may be refused.
const WAIT_EACH: Duration = Duration::from_micros(12);
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(50);
/// After so many orders, and so long without any, the memory that they took is given back.
const MANY: usize = 4_096;
const REST: Duration = Duration::from_secs(2);
/// In place of a topic's number where there is none; theirs begin at 1.
const NO_TOPIC: i64 = 0;

/// What the writer shares with the rest of the store.
pub(super) struct Shared {
    pub tail: Arc<Tail>,
    pub memory: Arc<Memory>,
    /// The last commit failed.
    pub failing: Arc<AtomicBool>,
    pub metrics: Arc<Metrics>,
}

/// Runs until the queue is closed and empty.
pub(super) fn run(mut connection: Connection, queue: &Receiver<Order>, shared: &Shared) {
    let mut writer = Writer {
        memory: &shared.memory,
        topics: Names::topics(),
        origins: Names::origins(),
        head: *shared.tail.head().borrow(),
        changed: Changed::default(),
    };
    let (mut group, mut since_rest) = (Vec::new(), 0);
    while let Some(first) = next(queue, &connection, &mut since_rest) {
        collect(first, queue, &mut group);
        since_rest += group.len();
        match writer.commit(&mut connection, &group) {
            Ok(commit) => {
                shared.metrics.store_commits.inc();
                shared.failing.store(false, Ordering::Relaxed);
                shared.tail.append(commit.entries);
                for (order, outcome) in group.drain(..).zip(commit.outcomes) {
                    order.answer(Ok(outcome));
                }
            }
            Err(error) => {
                tracing::error!(%error, orders = group.len(), "a commit failed");
                shared.failing.store(true, Ordering::Relaxed);
                shared.metrics.store_failures.inc_by(group.len() as u64);
                writer.roll_back(*shared.tail.head().borrow());
                for order in group.drain(..) {
                    order.answer(Err(StoreError(format!("the database failed: {error}"))));
                }
            }
        }
    }
    // Leaves one tidy file behind; a reader that is still at work makes it wait for the next start.
    if let Err(error) = connection.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
        tracing::debug!(%error, "no checkpoint at the end");
    }
}

/// Waits for the next order; none at the end.
fn next(queue: &Receiver<Order>, connection: &Connection, since_rest: &mut usize) -> Option<Order> {
    if *since_rest >= MANY {
        match queue.recv_timeout(REST) {
            Ok(order) => return Some(order),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                *since_rest = 0;
                spare::give_back(connection);
            }
        }
    }
    queue.recv().ok()
}

/// Takes a group.
///
/// A commit costs about as much as the pages it touches, so it waits a little until half of what is
/// under way is there; the other half is verified meanwhile. A lone event is committed at once.
fn collect(first: Order, queue: &Receiver<Order>, group: &mut Vec<Order>) {
    let began = Instant::now();
    let mut under_way = first.under_way().unwrap_or(0);
    group.push(first);
    while group.len() < MAX_GROUP {
        let next = match queue.try_recv() {
            Ok(next) => next,
            Err(_) if group.len() >= under_way / 2 => break,
            Err(_) => {
                let end = began + longest_wait(under_way);
                match queue.recv_deadline(end.min(Instant::now() + SHORTEST_WAIT)) {
                    Ok(next) => next,
                    Err(_) => break,
                }
            }
        };
        under_way = next.under_way().unwrap_or(under_way);
        group.push(next);
    }
}

/// How long a commit may wait when so many events are under way.
fn longest_wait(under_way: usize) -> Duration {
    let wait = WAIT_EACH.saturating_mul(u32::try_from(under_way).unwrap_or(u32::MAX));
    wait.clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

/// What an order did.
enum Done {
    Written(Committed),
    Removed(u64),
}

impl Order {
    /// Only events know; other orders between them say nothing of it.
    fn under_way(&self) -> Option<usize> {
        match self {
            Self::Write(write) => Some(write.under_way),
            Self::Remove(..) | Self::Evict(..) | Self::Run(..) => None,
        }
    }

    fn answer(self, result: Result<Done, StoreError>) {
        let removed = |answer: Answer, result: Result<Done, StoreError>| {
            answer(result.map(|done| match done {
                Done::Removed(count) => count,
                Done::Written(_) => 0,
            }));
        };
        match self {
            Self::Write(write) => (write.done)(result.map(|done| match done {
                Done::Written(outcome) => outcome,
                Done::Removed(_) => Committed::Duplicate,
            })),
            Self::Remove(_, answer) | Self::Evict(_, answer) | Self::Run(_, answer) => {
                removed(answer, result);
            }
        }
    }
}

struct Writer<'m> {
    memory: &'m Memory,
    topics: Names,
    origins: Names,
    /// The newest log position, given to an event that is not committed yet or to the last one.
    head: Seq,
    /// By what is not committed yet.
    changed: Changed,
}

#[derive(Default)]
struct Commit {
    outcomes: Vec<Done>,
    entries: Vec<LogEntry>,
}

impl Writer<'_> {
    fn commit(&mut self, connection: &mut Connection, group: &[Order]) -> rusqlite::Result<Commit> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = self.head;
        let mut commit = Commit::default();
        for order in group {
            commit.outcomes.push(match order {
                Order::Write(write) => {
                    Done::Written(self.apply(&transaction, write, &mut commit.entries)?)
                }
                Order::Remove(removal, _) => {
                    let changed = &self.changed;
                    Done::Removed(remove::asked(&transaction, self.memory, changed, removal)?)
                }
                Order::Evict(rows, _) => {
                    let mut removed = 0;
                    for row in rows {
                        let is_removed =
                            remove::row(&transaction, &self.changed, *row, Gone::Evicted)?;
                        removed += u64::from(is_removed);
                    }
                    Done::Removed(removed)
                }
                Order::Run(change, _) => Done::Removed(change(&transaction, &self.changed)?),
            });
        }
        if self.head != before {
            open::set_head(&transaction, self.head)?;
        }
        let news = self.changed.take(&transaction)?;
        transaction.commit()?;
        self.memory.versions.raise(news);
        Ok(commit)
    }

    /// Nothing of the last group was kept: forgets what it gave out.
    fn roll_back(&mut self, head: Seq) {
        self.topics.forget();
        self.origins.forget();
        self.memory.authors.clear();
        self.head = head;
        self.changed.forget();
    }

    fn apply(
        &mut self,
        connection: &Connection,
        write: &Write,
        entries: &mut Vec<LogEntry>,
    ) -> rusqlite::Result<Committed> {
        let event = &write.event;
        if self.memory.ids.may_contain(prefix(&event.id.0))
            && let Some(row) = open::row_of(connection, &event.id)?
        {
            return self.join_topics(connection, row, write, entries);
        }
        let (known, vanished) = (&self.memory.ids, &self.memory.vanished);
        match tombstones::find(connection, event, known, vanished)? {
            None => {}
            Some(Tombstone::Deleted) => {
                self.not_kept(connection, write, Gone::Deleted)?;
                return Ok(Committed::Deleted);
            }
            Some(Tombstone::Vanished) => {
                self.not_kept(connection, write, Gone::Vanished)?;
                return Ok(Committed::Vanished);
            }
        }
        if known.may_contain(prefix(&event.id.0)) {
            gone::forget_removed(connection, event)?;
        }
        let author = self.author(connection, event)?;
        let identifier = identifier(event);
        if let Some(identifier) = identifier {
            match older_version(connection, event, author, identifier)? {
                Older::None => {}
                Older::Newer => {
                    self.not_kept(connection, write, Gone::Replaced)?;
                    return Ok(Committed::Superseded);
                }
                Older::Replaceable(row) => {
                    remove::row(connection, &self.changed, row, Gone::Replaced)?;
                }
            }
        }
        // Before its own row is there.
        match event.kind {
            kinds::DELETION => {
                let gone = |id: &EventId| self.memory.ids.insert(prefix(&id.0));
                requests::delete(connection, &self.changed, event, gone)?;
            }
            kinds::VANISH if write.vanish => {
                self.memory.vanished.insert(prefix(&event.pubkey.0));
                requests::vanish(connection, &self.changed, author, event)?;
            }
            _ => {}
        }

        let (first, others) = match write.topics.split_first() {
            Some((first, others)) => (Some(first), others),
            None => (None, &[][..]),
        };
        let row = self.next_position();
        self.insert(connection, row, author, write, first, identifier)?;
        entries.push(LogEntry {
            seq: row.cast_unsigned(),
            event: event.shared().clone(),
            topic: first.cloned(),
            first: true,
            audience: Audience::first(write.private),
            origin: write.origin.log_name().into(),
        });
        if let Some(topic) = first {
            self.add_membership(connection, row, event, topic)?;
        }
        let mut seen_in = Vec::from_iter(first.filter(|_| write.private).cloned());
        for topic in others {
            if !self.add_membership(connection, row, event, topic)? {
                continue;
            }
            let audience = if write.private {
                let but = seen_in.clone();
                seen_in.push(topic.clone());
                Audience::Readers { but }
            } else {
                Audience::Nobody
            };
            self.join(connection, row, write, Some(topic), audience, entries)?;
        }
        Ok(Committed::New(row.cast_unsigned()))
    }

    /// Remembers that the topics' other members need not send it again.
    fn not_kept(
        &mut self,
        connection: &Connection,
        write: &Write,
        why: Gone,
    ) -> rusqlite::Result<()> {
        for topic in &write.topics {
            let topic = self.topics.number(connection, topic.as_str())?;
            gone::add(connection, &self.changed, topic, &write.event, write.private, why)?;
        }
        Ok(())
    }

    fn author(&self, connection: &Connection, event: &Event) -> rusqlite::Result<u32> {
        if let Some(author) = self.memory.author(connection, &event.pubkey)? {
            return Ok(author);
        }
        connection
            .prepare_cached("INSERT INTO authors (pubkey) VALUES (?1)")?
            .execute([event.pubkey.0])?;
        let author = u32::try_from(connection.last_insert_rowid())
            .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, i64::MAX))?;
        self.memory.authors.insert(event.pubkey, author);
        Ok(author)
    }

    fn next_position(&mut self) -> i64 {
        self.head += 1;
        self.head.cast_signed()
    }

    fn insert(
        &mut self,
        connection: &Connection,
        row: i64,
        author: u32,
        write: &Write,
        topic: Option<&TopicName>,
        identifier: Option<&str>,
    ) -> rusqlite::Result<()> {
        let event = &write.event;
        let created_at = event.created_at.cast_signed();
        let topic = match topic {
            Some(name) => Some(self.topics.number(connection, name.as_str())?),
            None => None,
        };
        let origin = self.origins.number(connection, &write.origin.log_name())?;
        // Before the commit: whoever sees the event must find it here too.
        self.memory.ids.insert(prefix(&event.id.0));
        self.memory.newest.raise(author, event.kind, created_at);
        connection
            .prepare_cached(
                "INSERT INTO events (row, author, created_at, kind, topic, origin, private, \
                 expires_at, identifier, id, json) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                row,
                author,
                created_at,
                event.kind,
                topic,
                origin,
                write.private,
                event.expires_at().map(|at| i64::try_from(at).unwrap_or(i64::MAX)),
                identifier,
                event.id.0,
                &**event.json(),
            ])?;
        let mut statement = connection
            .prepare_cached("INSERT INTO tags (key, created_at, event) VALUES (?1, ?2, ?3)")?;
        for key in tag_keys(event) {
            statement.execute(params![key, created_at, row])?;
        }
        Ok(())
    }

    /// A held event came again, by other topics perhaps.
    fn join_topics(
        &mut self,
        connection: &Connection,
        row: i64,
        write: &Write,
        entries: &mut Vec<LogEntry>,
    ) -> rusqlite::Result<Committed> {
        let before = entries.len();
        let mut private = privacy::of_row(connection, row)?;
        let mut seen_in = if private {
            let place = (write.event.created_at.cast_signed(), row);
            presence::topics_of(connection, place)?.into_iter().collect()
        } else {
            Vec::new()
        };
        for topic in &write.topics {
            if !self.add_membership(connection, row, &write.event, topic)? {
                continue;
            }
            let but = seen_in.clone();
            let audience = match (private, write.private) {
                (false, _) => Audience::Nobody,
                (true, true) => Audience::Readers { but },
                (true, false) => Audience::Everybody { but },
            };
            let at = self.join(connection, row, write, Some(topic), audience, entries)?;
            if private && !write.private {
                self.make_public(connection, row, at, &seen_in)?;
                private = false;
            }
            seen_in.push(topic.clone());
        }
        // Published again, for everybody and in no further topic.
        if private && !write.private {
            let audience = Audience::Everybody { but: seen_in.clone() };
            let at = self.join(connection, row, write, None, audience, entries)?;
            self.make_public(connection, row, at, &seen_in)?;
        }
        Ok(match entries.get(before..).and_then(<[_]>::last) {
            Some(entry) => Committed::Joined(entry.seq),
            None => Committed::Duplicate,
        })
    }

    /// An event that was in these private topics alone is for everybody from this position on. One of them
    /// may be public by now.
    fn make_public(
        &mut self,
        connection: &Connection,
        row: i64,
        at: Seq,
        topics: &[TopicName],
    ) -> rusqlite::Result<()> {
        for topic in topics {
            self.changed.topic(self.topics.number(connection, topic.as_str())?);
        }
        privacy::make_public(connection, row, at)
    }

    /// The log entry of a stored event that became part of a topic, or only public. Returns its
    /// position.
    fn join(
        &mut self,
        connection: &Connection,
        row: i64,
        write: &Write,
        topic: Option<&TopicName>,
        audience: Audience,
        entries: &mut Vec<LogEntry>,
    ) -> rusqlite::Result<Seq> {
        let origin = write.origin.log_name();
        let topic_number = match topic {
            Some(topic) => self.topics.number(connection, topic.as_str())?,
            None => NO_TOPIC,
        };
        let origin_number = self.origins.number(connection, &origin)?;
        let position = self.next_position();
        connection
            .prepare_cached(
                "INSERT INTO joins (seq, event, topic, origin) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![position, row, topic_number, origin_number])?;
        entries.push(LogEntry {
            seq: position.cast_unsigned(),
            event: write.event.shared().clone(),
            topic: topic.cloned(),
            first: false,
            audience,
            origin: origin.into(),
        });
        Ok(position.cast_unsigned())
    }

    fn add_membership(
        &mut self,
        connection: &Connection,
        row: i64,
        event: &Event,
        topic: &TopicName,
    ) -> rusqlite::Result<bool> {
        let topic = self.topics.number(connection, topic.as_str())?;
        let added = connection
            .prepare_cached(
                "INSERT OR IGNORE INTO memberships (topic, created_at, event, part) \
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                topic,
                event.created_at.cast_signed(),
                row,
                Part::of(event.kind).number()
            ])?;
        if added > 0 {
            self.changed.topic(topic);
        }
        Ok(added > 0)
    }
}

/// What replaces: `""` for a replaceable event, the `d` tag for an addressable one (NIP-01).
pub(super) fn identifier(event: &Event) -> Option<&str> {
    match event.class() {
        Class::Replaceable => Some(""),
        Class::Addressable => Some(event.identifier()),
        Class::Regular | Class::Ephemeral => None,
    }
}

/// The held event with the same address.
enum Older {
    None,
    /// It is the one to keep: newer, or as old with a lower id (NIP-01).
    Newer,
    Replaceable(i64),
}

fn older_version(
    connection: &Connection,
    event: &Event,
    author: u32,
    identifier: &str,
) -> rusqlite::Result<Older> {
    let held = connection
        .prepare_cached(
            "SELECT row, created_at, id FROM events \
             WHERE author = ?1 AND kind = ?2 AND identifier = ?3",
        )?
        .query_row(params![author, event.kind, identifier], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?.cast_unsigned(),
                row.get::<_, [u8; 32]>(2)?,
            ))
        })
        .optional()?;
    Ok(match held {
        None => Older::None,
        Some((row, created_at, id)) => {
            let replaces = event.created_at > created_at
                || (event.created_at == created_at && event.id.0 < id);
            if replaces { Older::Replaceable(row) } else { Older::Newer }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::pipeline::Origin;

    #[test]
    fn a_commit_waits_longer_where_more_is_under_way() {
        assert_eq!([0, 1, 256].map(longest_wait), [SHORTEST_WAIT; 3]);
        assert_eq!(longest_wait(1_000), Duration::from_millis(12));
        assert_eq!([100_000, usize::MAX].map(longest_wait), [LONGEST_WAIT; 2]);
    }

    fn write(under_way: usize) -> Order {
        Order::Write(Write {
            event: crate::protocol::signing::Author::new(1).verified(1, 1, &[], ""),
            topics: Vec::new(),
            private: false,
            vanish: false,
            under_way,
            origin: Origin::Import,
            done: Box::new(drop),
        })
    }

    #[test]
    fn a_group_is_what_is_there_and_waits_for_no_more_than_comes() {
        let (send, queue) = crossbeam_channel::bounded(2 * MAX_GROUP);
        let group = |first: Order| {
            let mut group = Vec::new();
            collect(first, &queue, &mut group);
            group.len()
        };
        // Nothing else is coming.
        assert_eq!(group(write(1)), 1);
        // What is there is taken, whether or not it is more than half.
        (0..3).for_each(|_| send.send(write(4)).unwrap());
        assert_eq!(group(write(4)), 4);
        // Of many under way none come: they are not waited for as long as for many.
        let began = Instant::now();
        assert_eq!(group(write(4_096)), 1);
        assert!(began.elapsed() >= SHORTEST_WAIT);
        // As many as there are, up to a bound.
        for _ in 0..MAX_GROUP + 10 {
            send.send(write(1)).unwrap();
        }
        assert_eq!(group(write(1)), MAX_GROUP);
        assert_eq!(queue.len(), 11);
    }
}
