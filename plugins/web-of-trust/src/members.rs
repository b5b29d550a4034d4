//! Who is in the web.

use std::collections::HashMap;

use crate::key::Short;

/// One who is followed by a root, or is one: however many others follow them, they are in.
const SURE: u16 = u16::MAX;

/// Authors, and how many of those that count follow each.
#[derive(Default)]
pub struct Draft {
    followers: HashMap<Short, u16>,
    /// More were followed than there was room for.
    pub is_cut: bool,
}

impl Draft {
    /// Says whether they were not in it.
    pub fn add_sure(&mut self, key: Short, most: usize) -> bool {
        if self.followers.len() >= most && !self.followers.contains_key(&key) {
            self.is_cut = true;
            return false;
        }
        self.followers.insert(key, SURE).is_none()
    }

    /// Somebody who counts follows them.
    pub fn add_followed(&mut self, key: Short, most: usize) {
        if let Some(count) = self.followers.get_mut(&key) {
            *count = count.saturating_add(1);
        } else if self.followers.len() < most {
            self.followers.insert(key, 1);
        } else {
            self.is_cut = true;
        }
    }

    /// Those with followers enough.
    pub fn finish(self, min_followers: u16) -> Members {
        let enough = self.followers.into_iter().filter(|(_, count)| *count >= min_followers);
        let mut sorted: Vec<Short> = enough.map(|(key, _)| key).collect();
        sorted.sort_unstable();
        sorted.shrink_to_fit();
        Members { sorted }
    }
}

/// The authors of a web, in 16 bytes each.
#[derive(Default)]
pub struct Members {
    sorted: Vec<Short>,
}

impl Members {
    pub fn has(&self, key: Short) -> bool {
        self.sorted.binary_search(&key).is_ok()
    }

    /// Adds some, between two times that all are looked for. Says whether there were new ones.
    pub fn add(&mut self, keys: impl Iterator<Item = Short>) -> bool {
        let mut new: Vec<_> = keys.filter(|key| !self.has(*key)).collect();
        if new.is_empty() {
            return false;
        }
        self.sorted.append(&mut new);
        self.sorted.sort_unstable();
        self.sorted.dedup();
        true
    }

    pub fn len(&self) -> usize {
        self.sorted.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_are_counted() {
        let mut draft = Draft::default();
        assert!(draft.add_sure(1, 4) && !draft.add_sure(1, 4));
        for key in [2, 3, 3, 1, 4, 4, 4, 5] {
            draft.add_followed(key, 4);
        }
        assert!(draft.is_cut, "there was no room for 5");
        let mut members = draft.finish(2);
        let known = |members: &Members| (0..9).filter(|key| members.has(*key)).collect::<Vec<_>>();
        assert_eq!(known(&members), [1, 3, 4]);
        assert!(members.add([8, 1, 0, 8].into_iter()) && !members.add([8].into_iter()));
        assert_eq!((known(&members), members.len()), (vec![0, 1, 3, 4, 8], 5));
    }
}
