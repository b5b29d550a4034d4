//! The authors who are asked for at one relay, in groups. Each group has a cursor of its own, and
//! catching up begins anew only for a group that is new: so newcomers make a group, whoever leaves just
//! leaves, and small groups are put together when there are many.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::protocol::PublicKey;

/// The most authors of a group: what relays commonly allow in a filter.
const MAX_AUTHORS: usize = 200;
/// So many groups more than needed are put up with.
const SPARE: usize = 4;

/// Some authors, and the number under which is kept how far catching up with them has come. That holds for
/// those who were in it from the beginning, so nobody ever joins one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: u64,
    pub authors: BTreeSet<PublicKey>,
}

impl Group {
    /// The same authors at another time are another group.
    fn new(authors: BTreeSet<PublicKey>, now: u64) -> Self {
        let mut hash = Sha256::new_with_prefix(now.to_be_bytes());
        authors.iter().for_each(|author| hash.update(author.0));
        let digest: [u8; 32] = hash.finalize().into();
        let (id, _) = digest.split_first_chunk().expect("a digest is longer than eight bytes");
        Self { id: u64::from_be_bytes(*id), authors }
    }
}

/// Makes the groups hold these authors; `now` is in Unix seconds. Returns whether anything changed.
pub fn regroup(groups: &mut Vec<Group>, wanted: &BTreeSet<PublicKey>, now: u64) -> bool {
    let mut changed = false;
    let mut missing = wanted.clone();
    for group in groups.iter_mut() {
        let before = group.authors.len();
        // One who is in two groups, which never happens, stays in the first.
        group.authors.retain(|author| missing.remove(author));
        changed |= group.authors.len() != before;
    }
    groups.retain(|group| !group.authors.is_empty());
    changed |= !missing.is_empty();
    let new = missing.len().div_ceil(MAX_AUTHORS);
    if !missing.is_empty() && groups.len() + new > wanted.len().div_ceil(MAX_AUTHORS) + SPARE {
        groups.retain(|group| {
            let stays = group.authors.len() > MAX_AUTHORS / 2;
            if !stays {
                missing.extend(&group.authors);
            }
            stays
        });
    }
    let missing: Vec<_> = missing.into_iter().collect();
    let new =
        missing.chunks(MAX_AUTHORS).map(|some| Group::new(some.iter().copied().collect(), now));
    groups.extend(new);
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: impl IntoIterator<Item = u16>) -> BTreeSet<PublicKey> {
        let key = |number: u16| {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&number.to_be_bytes());
            PublicKey(key)
        };
        numbers.into_iter().map(key).collect()
    }

    fn check(groups: &[Group], wanted: &BTreeSet<PublicKey>) {
        let all: Vec<_> = groups.iter().flat_map(|group| &group.authors).copied().collect();
        assert_eq!(all.len(), wanted.len(), "each author is in one group");
        assert_eq!(&all.into_iter().collect::<BTreeSet<_>>(), wanted);
        assert!(groups.iter().all(|group| group.authors.len() <= MAX_AUTHORS));
        assert!(groups.len() <= wanted.len().div_ceil(MAX_AUTHORS) * 2 + SPARE);
        let ids: BTreeSet<_> = groups.iter().map(|group| group.id).collect();
        assert_eq!(ids.len(), groups.len());
    }

    #[test]
    fn who_comes_makes_a_group_and_who_leaves_just_leaves() {
        let mut groups = Vec::new();
        assert!(regroup(&mut groups, &keys(0..50), 1));
        let first = groups[0].id;
        assert!(!regroup(&mut groups, &keys(0..50), 2));
        assert!(regroup(&mut groups, &keys(10..51), 3));
        check(&groups, &keys(10..51));
        assert_eq!((groups.len(), groups[0].id), (2, first));
        assert_eq!(groups[1].authors, keys([50]));
        // Whoever comes back was missed meanwhile.
        assert!(regroup(&mut groups, &keys(0..51), 4));
        assert_eq!(groups[2].authors, keys(0..10));
        assert!(regroup(&mut groups, &keys([]), 5) && groups.is_empty());
        regroup(&mut groups, &keys(0..50), 6);
        assert_ne!(groups[0].id, first, "a cursor of long ago does not count");
    }

    #[test]
    fn groups_are_of_a_bounded_size_and_number() {
        let mut groups = Vec::new();
        regroup(&mut groups, &keys(0..1_050), 1);
        assert_eq!(groups.len(), 6);
        let full: Vec<u64> = groups[..5].iter().map(|group| group.id).collect();
        for last in 1_051..1_900 {
            regroup(&mut groups, &keys(0..last), u64::from(last));
            check(&groups, &keys(0..last));
        }
        let ids: Vec<u64> = groups.iter().map(|group| group.id).collect();
        assert!(full.iter().all(|id| ids.contains(id)), "full groups do not begin anew");
    }
}
