//! The public part of mute lists (NIP-51, kind 10000): authors, words, hashtags and threads. They
//! are read from the store, one after the other, and again after a while.

use std::{collections::HashSet, fmt};

use nostr_gateway_plugin::{Event, log, lookup::Error};

use crate::{
    keys::{self, Key, Keys},
    words::{self, Words},
};

/// The kind of mute lists.
pub const MUTE_LIST: u16 = 10_000;

/// The most lists, and of each list the most entries and the most words: a word costs a search through
/// the content.
const MOST_LISTS: usize = 20;
pub const MOST_TAGS: u32 = 5_000;
const MOST_WORDS: usize = 200;

/// Seconds after which a list is read that was just published: it is stored by then.
const STORED_S: u64 = 1;

/// A deletion request (NIP-09) names events without being part of their thread.
const DELETION: u16 = 5;

/// The mute lists of some people.
pub struct Mutes {
    lists: Vec<List>,
    /// Seconds between two readings of a list.
    refresh: u64,
}

struct List {
    /// Whose it is; what they publish themselves is never muted, so that they can unmute.
    owner: Key,
    /// The same in lowercase digits.
    written: String,
    muted: Muted,
    /// When it is read again.
    due: u64,
}

#[derive(Default)]
struct Muted {
    authors: Keys,
    /// Events, and so the threads they are in.
    events: Keys,
    /// In lower case.
    hashtags: HashSet<String>,
    words: Words,
}

impl Mutes {
    /// Of the lists of these authors, read every so many seconds. Nothing is read yet.
    ///
    /// # Errors
    /// The text names the entry that is wrong.
    pub fn new(owners: &[String], refresh: u64) -> Result<Self, String> {
        if owners.len() > MOST_LISTS {
            return Err(format!("config.mute_lists: want at most {MOST_LISTS}"));
        }
        let list = |(owner, written): (Result<_, String>, &String)| {
            let written = written.to_lowercase();
            Ok(List { owner: owner?, written, muted: Muted::default(), due: 0 })
        };
        let lists = keys::listed("mute_lists", owners).zip(owners).map(list);
        Ok(Self { lists: lists.collect::<Result<_, String>>()?, refresh })
    }

    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Reads all lists at the start.
    ///
    /// # Errors
    /// When the plugin may not read them.
    pub fn read_all(
        &mut self,
        tags_of: impl Fn(&str) -> Result<Vec<Vec<String>>, Error>,
    ) -> Result<(), String> {
        for list in &mut self.lists {
            match tags_of(&list.written) {
                Ok(tags) => list.muted = Muted::of(&tags),
                Err(Error::Unavailable) => {
                    return Err("config.mute_lists wants the capability lookup; to allow that: \
                                nostr-gateway plugin enable blocklist --grant lookup"
                        .to_owned());
                }
                Err(error) => unread(&list.written, error),
            }
        }
        Ok(())
    }

    /// Reads one list again, if one is due.
    pub fn refresh(&mut self, now: u64, tags_of: impl Fn(&str) -> Result<Vec<Vec<String>>, Error>) {
        let (refresh, lists) = (self.refresh, self.lists.iter_mut());
        let Some(list) = lists.filter(|list| list.due <= now).min_by_key(|list| list.due) else {
            return;
        };
        list.due = now + refresh;
        match tags_of(&list.written) {
            Ok(tags) => list.muted = Muted::of(&tags),
            Err(error) => unread(&list.written, error),
        }
    }

    /// A list that comes by is read when it is stored, if that is what becomes of it: it may be older
    /// than the one that is held.
    pub fn heard(&mut self, event: &Event, now: u64) {
        if event.kind != MUTE_LIST || self.lists.is_empty() {
            return;
        }
        let owner = keys::parse(&event.pubkey);
        for list in self.lists.iter_mut().filter(|list| Some(list.owner) == owner) {
            list.due = now + STORED_S;
        }
    }

    /// Why an event is refused, if it is.
    pub fn refuse(&self, event: &Event) -> Option<&'static str> {
        if self.lists.is_empty() {
            return None;
        }
        let author = keys::parse(&event.pubkey)?;
        if self.lists.iter().any(|list| list.owner == author) {
            return None;
        }
        let any = |is: &dyn Fn(&Muted) -> bool| self.lists.iter().any(|list| is(&list.muted));
        if any(&|muted| muted.authors.contains(&author)) {
            return Some("this author is on a mute list");
        }
        let content = any(&|muted| !muted.words.is_empty()).then(|| words::lowered(&event.content));
        if content.is_some_and(|content| any(&|muted| muted.words.are_in(&content))) {
            return Some("a word is on a mute list");
        }
        let (has_events, has_hashtags) =
            (any(&|muted| !muted.events.is_empty()), any(&|muted| !muted.hashtags.is_empty()));
        let is_muted =
            |id: &str| keys::parse(id).is_some_and(|id| any(&|muted| muted.events.contains(&id)));
        if has_events && is_muted(&event.id) {
            return Some("this event is on a mute list");
        }
        for tag in &event.tags {
            let [name, value, ..] = tag.as_slice() else { continue };
            match name.as_str() {
                "t" if has_hashtags => {
                    let hashtag = value.to_lowercase();
                    if any(&|muted| muted.hashtags.contains(&hashtag)) {
                        return Some("a hashtag is on a mute list");
                    }
                }
                "e" if has_events && event.kind != DELETION && is_muted(value) => {
                    return Some("its thread is on a mute list");
                }
                _ => {}
            }
        }
        None
    }
}

impl Muted {
    fn of(tags: &[Vec<String>]) -> Self {
        let values = |wanted: &'static str| {
            tags.iter().filter_map(move |tag| match tag.as_slice() {
                [name, value, ..] if name == wanted => Some(value.as_str()),
                _ => None,
            })
        };
        // An empty one would be in every content.
        let words = values("word").filter(|word| !word.trim().is_empty()).take(MOST_WORDS);
        let hashtags = values("t").filter(|hashtag| !hashtag.is_empty());
        Self {
            authors: values("p").filter_map(keys::parse).collect(),
            events: values("e").filter_map(keys::parse).collect(),
            hashtags: hashtags.map(str::to_lowercase).collect(),
            words: Words::new(words),
        }
    }
}

fn unread(owner: &str, error: Error) {
    log::warn(&format!("the mute list of {owner} cannot be read: {}", error.name()));
}

impl fmt::Display for Mutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = |list: &List| {
            let Muted { authors, events, hashtags, words } = &list.muted;
            authors.len() + events.len() + hashtags.len() + words.len()
        };
        let entries: usize = self.lists.iter().map(entries).sum();
        write!(f, "{} mute lists have {entries} entries", self.lists.len())
    }
}

#[cfg(test)]
pub mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    pub const ALICE: &str = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d";
    pub const BOB: &str = "82341f882b6eabcd2ba7f1ef90aad961cf074af15b9ef44a09f9d2a8fbfbe6a2";

    pub fn note(pubkey: &str, content: &str) -> Event {
        event(pubkey, 1, content, &[])
    }

    fn event(pubkey: &str, kind: u16, content: &str, tags: &[&[&str]]) -> Event {
        Event {
            id: "11".repeat(32),
            pubkey: pubkey.to_owned(),
            created_at: 1,
            kind,
            tags: owned(tags),
            content: content.to_owned(),
            sig: String::new(),
        }
    }

    fn owned(tags: &[&[&str]]) -> Vec<Vec<String>> {
        let tag = |tag: &&[&str]| tag.iter().map(|&value| value.to_owned()).collect();
        tags.iter().map(tag).collect()
    }

    fn muting(tags: &[&[&str]]) -> Mutes {
        let mut mutes = Mutes::new(&[ALICE.to_uppercase()], 60).unwrap();
        mutes
            .read_all(|owner| {
                assert_eq!(owner, ALICE);
                Ok(owned(tags))
            })
            .unwrap();
        mutes
    }

    #[test]
    fn what_a_list_names_is_refused() {
        let carol = &"cc".repeat(32);
        let thread = "ee".repeat(32);
        let mutes = muting(&[
            &["p", BOB, "wss://example.com"],
            &["word", "Casino"],
            &["t", "Ads"],
            &["e", &thread],
            &["p"],
            &["word", " "],
            &["t", ""],
            &["p", "nobody"],
        ]);
        let refused = |event: &Event| mutes.refuse(event).unwrap_or("passes");
        assert_eq!(refused(&note(BOB, "")), "this author is on a mute list");
        assert_eq!(refused(&note(carol, "a CASINO")), "a word is on a mute list");
        assert_eq!(refused(&event(carol, 1, "", &[&["t", "ads"]])), "a hashtag is on a mute list");
        let reply: &[&[&str]] = &[&["e", &thread, "", "root"]];
        assert_eq!(refused(&event(carol, 1, "", reply)), "its thread is on a mute list");
        let itself = Event { id: thread.clone(), ..note(carol, "") };
        assert_eq!(refused(&itself), "this event is on a mute list");
        for passes in [
            note(carol, "hello ads"),
            event(carol, 1, "", &[&["t", "adsy"], &["t"], &["e"], &["e", "x"], &["p", BOB]]),
            event(carol, DELETION, "", reply),
            event(ALICE, MUTE_LIST, "casino", &[&["p", BOB], &["t", "ads"]]),
        ] {
            assert_eq!(refused(&passes), "passes", "{passes:?}");
        }
    }

    #[test]
    fn a_list_is_read_again_when_it_changed_and_after_a_while() {
        let mut mutes = muting(&[]);
        let (held, asked) = (RefCell::new(Vec::new()), Cell::new(0));
        let read = |_: &str| {
            asked.set(asked.get() + 1);
            Ok(held.borrow().clone())
        };
        mutes.refresh(1_000, read);
        *held.borrow_mut() = owned(&[&["p", BOB]]);
        mutes.refresh(1_059, read);
        assert_eq!((asked.get(), mutes.refuse(&note(BOB, ""))), (1, None));
        mutes.refresh(1_060, read);
        assert_eq!(asked.get(), 2);
        assert!(mutes.refuse(&note(BOB, "")).is_some());

        *held.borrow_mut() = Vec::new();
        mutes.heard(&event(BOB, MUTE_LIST, "", &[]), 1_070);
        mutes.heard(&note(ALICE, ""), 1_070);
        mutes.refresh(1_071, read);
        assert_eq!(asked.get(), 2, "that was no list of hers");
        mutes.heard(&event(ALICE, MUTE_LIST, "", &[]), 1_080);
        mutes.refresh(1_080, read);
        assert_eq!(asked.get(), 2, "it is not stored yet");
        mutes.refresh(1_081, read);
        assert_eq!((asked.get(), mutes.refuse(&note(BOB, ""))), (3, None));
        mutes.refresh(1_082, read);
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn one_call_reads_one_list() {
        let owners = [ALICE.to_owned(), BOB.to_owned()];
        let mut mutes = Mutes::new(&owners, 10).unwrap();
        let asked = RefCell::new(Vec::new());
        let read = |owner: &str| {
            asked.borrow_mut().push(owner.to_owned());
            Ok(Vec::new())
        };
        for now in [5, 5, 5, 14, 20, 20, 20] {
            mutes.refresh(now, read);
        }
        assert_eq!(*asked.borrow(), [ALICE, BOB, ALICE, BOB]);
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let mut mutes = Mutes::new(&[ALICE.to_owned()], 60).unwrap();
        let error = mutes.read_all(|_| Err(Error::Unavailable)).unwrap_err();
        assert!(error.contains("plugin enable blocklist --grant lookup"), "{error}");
        let error = Mutes::new(&["x".to_owned()], 60).err().unwrap();
        assert!(error.starts_with("config.mute_lists[0]: "), "{error}");
        assert!(Mutes::new(&vec![ALICE.to_owned(); 21], 60).is_err());
        assert!(Mutes::new(&[], 60).unwrap().is_empty());
    }

    #[test]
    fn a_long_list_is_cut() {
        let words: Vec<String> = (0..300).map(|n| format!("word{n:03}")).collect();
        let tags: Vec<_> = words.iter().map(|word| vec!["word".to_owned(), word.clone()]).collect();
        assert_eq!(Muted::of(&tags).words.len(), MOST_WORDS);
    }
}
