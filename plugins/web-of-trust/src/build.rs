//! The web itself: whom the roots follow, and whom those follow, by the lists in the store.
//!
//! A list costs a question to the store, and a web may want thousands of them: as many as there is time
//! for at the start, and then some with each event. Meanwhile the web before this one counts.

use std::collections::VecDeque;

use nostr_gateway_plugin::{Event, lookup::Error};

use crate::{
    key::{self, Key},
    members::{Draft, Members},
};

/// A list of follows (NIP-02).
const FOLLOWS: u16 = 3;

/// How many of a list are read.
const MOST_FOLLOWS: u32 = 10_000;

/// How many follows are read at the start, and with one event. A follow takes a microsecond or two; what
/// the store may be asked for is bounded as well.
const AT_START: usize = 100_000;
const WITH_EVENT: usize = 1_500;
/// How many lists with one event.
const LISTS_WITH_EVENT: usize = 8;

/// Seconds after which whom the roots follow is read again: whoever runs the gateway is one of them.
const ROOTS_S: u64 = 30;
/// Seconds after which a list is read that was just published: it is stored by then.
const STORED_S: u64 = 1;

/// How far a web reaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Reach {
    pub roots: Vec<Key>,
    /// 1 is whom the roots follow, 2 also whom those follow.
    pub hops: u8,
    /// How many roots or followed ones have to follow an author at two hops.
    pub min_followers: u16,
    /// How many authors are counted.
    pub most: usize,
    /// Seconds after which everything is read again.
    pub refresh: u64,
}

/// A web, and the next one.
pub struct Web {
    reach: Reach,
    /// `None` until everything was read once.
    members: Option<Members>,
    build: Option<Build>,
    /// When everything is read again.
    due: u64,
    /// When the roots' lists are read again, and the one that is next.
    roots_due: u64,
    next_root: usize,
    /// What the operator may want to know.
    news: Option<String>,
}

/// A web half read.
struct Build {
    draft: Draft,
    /// Whose lists are to be read, with whether they are roots. Those come first.
    waiting: VecDeque<(Key, bool)>,
    /// Lists that were there, and those too long to be read.
    lists: usize,
    too_long: usize,
}

/// No more can be read now.
struct Pause;

impl Web {
    pub fn new(reach: Reach) -> Self {
        let (members, build, news) = (None, None, None);
        Self { reach, members, build, due: 0, roots_due: 0, next_root: 0, news }
    }

    /// What the operator may want to know, once.
    pub fn news(&mut self) -> Option<String> {
        self.news.take()
    }

    /// Whether there is anybody to begin with.
    pub fn is_configured(&self) -> bool {
        !self.reach.roots.is_empty()
    }

    /// Whether an author is in it; `None` while that is not known.
    pub fn has(&self, author: &str) -> Option<bool> {
        let members = self.members.as_ref()?;
        Some(key::parse(author).is_some_and(|key| members.has(key::short(&key))))
    }

    /// Reads at the start as much as there is time for.
    pub fn begin(&mut self, now: u64, follows: impl Fn(&str, u32) -> Result<Vec<String>, Error>) {
        self.build = Some(Build::new(&self.reach));
        self.read(now, AT_START, usize::MAX, follows);
    }

    /// Reads some more, if there is anything to be read.
    pub fn go_on(&mut self, now: u64, follows: impl Fn(&str, u32) -> Result<Vec<String>, Error>) {
        if self.build.is_none() && now >= self.due {
            self.build = Some(Build::new(&self.reach));
        }
        if self.build.is_some() {
            self.read(now, WITH_EVENT, LISTS_WITH_EVENT, follows);
        } else if now >= self.roots_due {
            self.look_at_a_root(now, follows);
        }
    }

    fn read(
        &mut self,
        now: u64,
        most: usize,
        lists: usize,
        follows: impl Fn(&str, u32) -> Result<Vec<String>, Error>,
    ) {
        let Some(mut build) = self.build.take() else { return };
        let mut read = 0;
        for list in 0..lists {
            match build.next(&self.reach, list == 0, &follows) {
                Ok(Some(more)) => read += more,
                Ok(None) => return self.take(build, now),
                Err(Pause) => break,
            }
            if read >= most {
                break;
            }
        }
        self.build = Some(build);
    }

    fn take(&mut self, build: Build, now: u64) {
        let Build { draft, lists, too_long, .. } = build;
        let is_cut = draft.is_cut;
        let members = draft.finish(self.reach.min_followers);
        if self.members.is_none() {
            let mut news = format!("{} authors are in the web, by {lists} lists", members.len());
            if too_long > 0 {
                news.push_str(&format!("; {too_long} lists are too long"));
            }
            if is_cut {
                news.push_str("; there are more than config.max_authors");
            }
            if lists == 0 {
                news.push_str("; no list of follows of a root is held");
            }
            self.news = Some(news);
        }
        self.members = Some(members);
        (self.next_root, self.roots_due) = (0, now + ROOTS_S);
        self.due = now + if lists == 0 { ROOTS_S } else { self.reach.refresh };
    }

    /// Whom a root follows by now: one root with each event. Whom the new ones follow takes longer.
    fn look_at_a_root(
        &mut self,
        now: u64,
        follows: impl Fn(&str, u32) -> Result<Vec<String>, Error>,
    ) {
        let root = self.reach.roots.get(self.next_root);
        let Some((root, members)) = root.zip(self.members.as_mut()) else {
            (self.next_root, self.roots_due) = (0, now + ROOTS_S);
            return;
        };
        self.next_root += 1;
        let Ok(list) = follows(&key::written(root), MOST_FOLLOWS) else { return };
        let keys = list.iter().filter_map(|text| key::parse(text));
        if members.add(keys.map(|key| key::short(&key))) && self.reach.hops > 1 {
            self.due = now;
        }
    }

    /// A list of a root that comes by is read when it is stored, if that is what becomes of it.
    pub fn heard(&mut self, event: &Event, now: u64) {
        if event.kind == FOLLOWS
            && key::parse(&event.pubkey).is_some_and(|author| self.reach.roots.contains(&author))
        {
            (self.next_root, self.roots_due) = (0, now + STORED_S);
        }
    }
}

impl Build {
    fn new(reach: &Reach) -> Self {
        let mut draft = Draft::default();
        for root in &reach.roots {
            draft.add_sure(key::short(root), reach.most);
        }
        let waiting = reach.roots.iter().map(|root| (*root, true)).collect();
        Self { draft, waiting, lists: 0, too_long: 0 }
    }

    /// Reads the next list, and says how long it is; `None` when all were read. The first of a call has
    /// all that the call may cost: what is too dear for that always will be.
    fn next(
        &mut self,
        reach: &Reach,
        is_first: bool,
        follows: &impl Fn(&str, u32) -> Result<Vec<String>, Error>,
    ) -> Result<Option<usize>, Pause> {
        let Some((author, is_root)) = self.waiting.front().copied() else { return Ok(None) };
        let list = match follows(&key::written(&author), MOST_FOLLOWS) {
            Ok(list) => list,
            Err(Error::Cost) if is_first => {
                self.too_long += 1;
                Vec::new()
            }
            Err(_) => return Err(Pause),
        };
        self.waiting.pop_front();
        self.lists += usize::from(!list.is_empty());
        for followed in list.iter().filter_map(|text| key::parse(text)) {
            let short = key::short(&followed);
            if !is_root {
                self.draft.add_followed(short, reach.most);
            } else if self.draft.add_sure(short, reach.most) && reach.hops > 1 {
                self.waiting.push_back((followed, false));
            }
        }
        // An empty one is no work, but a question.
        Ok(Some(list.len().max(50)))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::HashMap,
    };

    use super::*;
    use crate::rules::tests::event;

    /// A store of lists of follows.
    #[derive(Default)]
    struct Lists {
        of: RefCell<HashMap<String, Vec<String>>>,
        asked: Cell<usize>,
        /// How many questions may be asked until it says that it is enough.
        left: Cell<usize>,
    }

    impl Lists {
        fn set(&self, author: u32, follows: &[u32]) {
            let follows = follows.iter().map(|n| name(*n)).collect();
            self.of.borrow_mut().insert(name(author), follows);
        }

        fn ask(&self, author: &str, _: u32) -> Result<Vec<String>, Error> {
            self.asked.set(self.asked.get() + 1);
            let left = self.left.get().checked_sub(1).ok_or(Error::Cost)?;
            self.left.set(left);
            Ok(self.of.borrow().get(author).cloned().unwrap_or_default())
        }
    }

    fn name(n: u32) -> String {
        format!("{n:08x}").repeat(8)
    }

    fn reach(hops: u8, min_followers: u16) -> Reach {
        let roots = vec![key::parse(&name(1)).unwrap(), key::parse(&name(2)).unwrap()];
        Reach { roots, hops, min_followers, most: 1_000, refresh: 600 }
    }

    fn known(web: &Web) -> Vec<u32> {
        (0..60).filter(|n| web.has(&name(*n)) == Some(true)).collect()
    }

    /// 1 and 2 are the roots; 1 follows 10 and 11, 2 follows 11.
    fn lists() -> Lists {
        let lists = Lists::default();
        lists.left.set(usize::MAX);
        lists.set(1, &[10, 11]);
        lists.set(2, &[11, 1]);
        lists.set(10, &[20, 21, 1]);
        lists.set(11, &[21, 22, 10]);
        lists.set(20, &[30]);
        lists
    }

    fn built(reach: Reach, lists: &Lists) -> Web {
        let mut web = Web::new(reach);
        assert_eq!(web.has(&name(1)), None, "nothing is known yet");
        web.begin(1_000, |author, most| lists.ask(author, most));
        web
    }

    #[test]
    fn a_web_reaches_as_far_as_it_is_told() {
        let lists = lists();
        assert_eq!(known(&built(reach(1, 1), &lists)), [1, 2, 10, 11]);
        assert_eq!(lists.asked.get(), 2);
        assert_eq!(known(&built(reach(2, 1), &lists)), [1, 2, 10, 11, 20, 21, 22]);
        assert_eq!(known(&built(reach(2, 2), &lists)), [1, 2, 10, 11, 21]);
        assert_eq!(known(&built(reach(2, 3), &lists)), [1, 2, 10, 11]);
        let few = Reach { most: 5, ..reach(2, 1) };
        let mut web = built(few, &lists);
        assert_eq!(known(&web), [1, 2, 10, 11, 20]);
        let news = "5 authors are in the web, by 4 lists; there are more than config.max_authors";
        assert_eq!((web.news().as_deref(), web.news()), (Some(news), None));
    }

    #[test]
    fn what_costs_too_much_at_once_is_read_bit_by_bit() {
        let lists = lists();
        lists.left.set(1);
        let ask = |author: &str, most| lists.ask(author, most);
        let mut web = built(reach(2, 1), &lists);
        assert_eq!(web.has(&name(1)), None);
        for _ in 0..3 {
            assert_eq!(web.has(&name(1)), None);
            lists.left.set(1);
            web.go_on(1_001, ask);
        }
        assert_eq!(known(&web), [1, 2, 10, 11, 20, 21, 22]);
    }

    #[test]
    fn a_list_that_is_too_long_is_left_out() {
        let lists = lists();
        lists.left.set(0);
        let ask = |author: &str, most| lists.ask(author, most);
        let mut web = built(reach(2, 1), &lists);
        assert_eq!(web.build.as_ref().map(|build| build.too_long), Some(1));
        lists.left.set(usize::MAX);
        web.go_on(1_001, ask);
        assert_eq!(known(&web), [1, 2, 10, 11, 21, 22], "without whom 1 follows");
    }

    #[test]
    fn one_event_reads_only_so_much() {
        let lists = lists();
        let many: Vec<u32> = (100..200).collect();
        lists.set(1, &many);
        for author in &many {
            lists.set(*author, &(1_000..1_400).collect::<Vec<_>>());
        }
        let ask = |author: &str, most| lists.ask(author, most);
        let mut web = Web::new(reach(2, 1));
        web.build = Some(Build::new(&web.reach));
        web.go_on(1_000, ask);
        assert!((4..=8).contains(&lists.asked.get()), "{}", lists.asked.get());
        let events = (0..200).find(|_| {
            web.go_on(1_000, ask);
            web.build.is_none()
        });
        assert!((20..60).contains(&events.unwrap()), "{events:?}");
    }

    #[test]
    fn it_is_read_again_after_a_while_and_the_roots_sooner() {
        let lists = lists();
        let mut web = built(reach(2, 1), &lists);
        let ask = |author: &str, most| lists.ask(author, most);
        let before = lists.asked.get();
        lists.set(11, &[]);
        web.go_on(1_029, ask);
        assert_eq!(lists.asked.get(), before);
        web.go_on(1_600, ask);
        assert_eq!(known(&web), [1, 2, 10, 11, 20, 21]);

        // A new follow of a root counts soon, and of those whom that one follows.
        lists.set(2, &[12]);
        lists.set(12, &[40]);
        web.go_on(1_629, ask);
        assert!(!known(&web).contains(&12));
        web.heard(&event(&name(2), FOLLOWS, &[]), 1_629);
        web.go_on(1_630, ask);
        web.go_on(1_630, ask);
        assert!(known(&web).contains(&12) && !known(&web).contains(&40));
        web.go_on(1_631, ask);
        assert_eq!(known(&web), [1, 2, 10, 11, 12, 20, 21, 40]);

        // Without hearing of it, within half a minute.
        lists.set(1, &[10, 11, 13]);
        for now in [1_650, 1_661, 1_662] {
            web.go_on(now, ask);
        }
        assert!(known(&web).contains(&13));
    }

    #[test]
    fn without_lists_there_are_the_roots_until_there_are_some() {
        let lists = Lists::default();
        lists.left.set(usize::MAX);
        let mut web = built(reach(2, 1), &lists);
        assert_eq!(known(&web), [1, 2]);
        lists.set(1, &[10]);
        lists.set(10, &[20]);
        web.go_on(1_030, |author, most| lists.ask(author, most));
        assert_eq!(known(&web), [1, 2, 10, 20]);
    }
}
