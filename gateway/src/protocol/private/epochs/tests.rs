//! One rule each. That all of them together hold is for the simulator.

use super::{admin::Deed, members::Source, *};
use crate::protocol::private::{
    MAX_INVITES, MAX_MEMBERS,
    message::Message,
    roster::{Body, Header, MAX_GRACE, UnverifiedRoster, Uses},
};

const NOW: u64 = 1_800_000_000;

/// A member with a clock and randomness of its own.
struct Member {
    epochs: Epochs,
    now: u64,
    counter: u64,
}

fn id(number: u8) -> MemberId {
    MemberId([number; 32])
}

fn bytes(seed: u8, counter: &mut u64) -> [u8; 32] {
    *counter += 1;
    let mut bytes = [seed; 32];
    bytes[..8].copy_from_slice(&counter.to_be_bytes());
    bytes
}

impl Member {
    fn create(number: u8) -> Self {
        let mut counter = 0;
        let mut random = || bytes(number, &mut counter);
        let name = TopicName::new("reading circle").unwrap();
        let mut moment = Moment { now: NOW, random: &mut random };
        let (epochs, _) = Epochs::create(id(number), name, &mut moment);
        Self { epochs, now: NOW, counter }
    }

    fn accept(number: u8, invite: &Invite) -> Self {
        Self { epochs: Epochs::accept(id(number), invite).0, now: NOW, counter: 0 }
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let (seed, counter) = (self.epochs.me.0[0], &mut self.counter);
        let mut random = || bytes(seed, counter);
        self.epochs.step(input, &mut Moment { now: self.now, random: &mut random })
    }

    fn invite(&mut self, uses: Uses) -> Invite {
        let outputs = self.step(Input::Command(Command::Invite { uses, peers: vec![] }));
        let invited = outputs.into_iter().find_map(|output| match output {
            Output::Invited(invite) => Some(*invite),
            _ => None,
        });
        invited.unwrap()
    }

    fn rotate(&mut self, exclude: &[u8], grace: u32) -> Vec<Output> {
        let exclude = exclude.iter().map(|number| id(*number)).collect();
        self.step(Input::Command(Command::Rotate { exclude, grace }))
    }

    fn head(&self) -> (Place, RosterHash) {
        self.epochs.chain.as_ref().unwrap().position()
    }

    fn epoch(&self) -> u64 {
        self.head().0.epoch
    }

    /// What this one would hand over to somebody at that position.
    fn handover(&mut self, peer: u8, position: Position) -> Option<Handover> {
        let outputs = self.step(Input::Met { peer: id(peer), position });
        outputs.into_iter().find_map(|output| match output {
            Output::HandOver { handover, .. } => Some(*handover),
            _ => None,
        })
    }
}

/// A meeting as on a stream. Returns whether the responder answered.
fn meet(initiator: &mut Member, responder: &mut Member) -> bool {
    if !responder.epochs.welcomes(initiator.epochs.me, initiator.epochs.admission()) {
        return false;
    }
    let pass = |from: &mut Member, to: &mut Member| {
        let position = to.epochs.position();
        let (from_id, to_id) = (from.epochs.me, to.epochs.me);
        for output in from.step(Input::Met { peer: to_id, position }) {
            match output {
                Output::HandOver { handover, .. } => {
                    to.step(Input::Received { peer: from_id, handover });
                }
                Output::Tell { admissions, .. } => {
                    to.step(Input::Told { peer: from_id, admissions });
                }
                _ => {}
            }
        }
    };
    pass(initiator, responder);
    pass(responder, initiator);
    true
}

/// The admin 1 and the members 2, 3, … on its roster, and an invite that is still open.
fn circle(size: u8) -> (Vec<Member>, Invite) {
    let mut admin = Member::create(1);
    let invite = admin.invite(Uses::Many);
    let mut all: Vec<_> = (2..=size)
        .map(|number| {
            let mut member = Member::accept(number, &invite);
            assert!(meet(&mut member, &mut admin));
            member
        })
        .collect();
    admin.rotate(&[], 0);
    all.iter_mut().for_each(|member| assert!(meet(member, &mut admin)));
    all.insert(0, admin);
    assert!(all.iter().all(|member| member.head() == all[0].head() && member.epoch() == 2));
    assert_eq!(all[0].epochs.roster().unwrap().body().members.len(), usize::from(size));
    (all, invite)
}

fn refusal(outputs: &[Output]) -> Option<Refusal> {
    outputs.iter().find_map(|output| match output {
        Output::Refused(refusal) => Some(*refusal),
        _ => None,
    })
}

#[test]
fn whoever_holds_an_invite_is_let_in_by_any_member() {
    let (mut all, invite) = circle(3);
    let mut newcomer = Member::accept(9, &invite);
    assert_eq!(newcomer.epochs.publishes_in(), None, "nobody has let it in");
    assert!(!newcomer.epochs.welcomes(id(2), None), "it knows of no member");
    assert!(meet(&mut newcomer, &mut all[2]));
    assert_eq!(newcomer.head(), all[0].head());
    assert!(all[2].epochs.is_member(id(9)) && newcomer.epochs.is_member(id(9)));
    // Its admission is enough at the others, and they tell one another.
    assert!(meet(&mut newcomer, &mut all[1]));
    let [admin, second, ..] = &mut all[..] else { panic!() };
    assert!(!admin.epochs.is_member(id(9)));
    assert!(meet(second, admin));
    assert!(admin.epochs.is_member(id(9)));
    // The admin folds it into the next roster.
    admin.rotate(&[], 0);
    assert!(admin.epochs.roster().unwrap().body().members.contains_key(&id(9)));
}

#[test]
fn a_rotation_is_saved_joined_published_and_then_handed_on() {
    let (mut all, _) = circle(2);
    let old = all[0].epochs.publishes_in().unwrap();
    let outputs = all[0].rotate(&[], 60);
    let new = all[0].epochs.publishes_in().unwrap();
    assert_eq!(outputs, [Output::Persist, Output::Join(new), Output::Publish(new), Output::Spread]);
    assert_eq!((old.number, new.number), (2, 3));
    assert_eq!(all[0].epochs.reads(), [old, new]);
    assert_eq!(all[0].epochs.next_tick(), Some(NOW + 60));

    all[0].now += 59;
    assert_eq!(all[0].step(Input::Tick), []);
    all[0].now += 1;
    assert_eq!(all[0].step(Input::Tick), [Output::Persist, Output::Leave(old)]);
    assert!(all[0].epochs.keys(old).is_none() && all[0].epochs.keys(new).is_some());
    assert_eq!(all[0].epochs.next_tick(), None);
}

#[test]
fn members_in_the_old_epoch_are_read_for_the_grace() {
    let (mut all, _) = circle(2);
    all[0].rotate(&[], 60);
    let behind = all[1].epochs.publishes_in().unwrap();
    assert!(all[0].epochs.reads().contains(&behind));
    let [admin, member] = &mut all[..] else { panic!() };
    meet(member, admin);
    assert_eq!(member.epochs.publishes_in(), admin.epochs.publishes_in());
    assert_eq!(member.epochs.reads().len(), 2, "it reads on as well");
    assert_eq!(
        member.epochs.keys(behind).unwrap().gossip_topic,
        admin.epochs.keys(behind).unwrap().gossip_topic
    );
}

#[test]
fn one_who_was_away_for_long_catches_up_from_a_newcomer() {
    let (mut all, _) = circle(3);
    for _ in 0..40 {
        all[0].rotate(&[], 0);
    }
    let invite = all[0].invite(Uses::Once);
    let mut newcomer = Member::accept(9, &invite);
    assert!(meet(&mut newcomer, &mut all[0]));
    for _ in 0..40 {
        all[0].rotate(&[], 0);
        assert!(meet(&mut newcomer, &mut all[0]));
    }
    assert!(meet(&mut all[2], &mut newcomer), "it is on the roster that the newcomer has");
    assert_eq!(all[2].head(), all[0].head());
    assert_eq!(all[2].epoch(), 82);
}

#[test]
fn whoever_is_left_out_stays_out() {
    let (mut all, invite) = circle(4);
    let another = all[0].invite(Uses::Once);
    for at in [1, 2, 3] {
        let [admin, rest @ ..] = &mut all[..] else { panic!() };
        meet(&mut rest[at - 1], admin);
    }
    all[0].rotate(&[4], 0);
    let [admin, second, _, out] = &mut all[..] else { panic!() };
    meet(second, admin);
    let old = out.head();
    for member in [&mut *admin, &mut *second] {
        // As itself, under a fresh id, with every invite.
        assert!(!meet(out, member));
        let mut fresh = Member { epochs: out.epochs.clone(), now: NOW, counter: 0 };
        fresh.epochs.me = id(77);
        assert!(!meet(&mut fresh, member));
        for invite in [&invite, &another] {
            assert!(!meet(&mut Member::accept(78, invite), member));
        }
        // Called by an honest member that does not know it is out: it gets nothing either.
        let outputs = member.step(Input::Met { peer: id(4), position: out.epochs.position() });
        assert_eq!(refusal(&outputs), Some(Refusal::NotMember(id(4))));
        assert!(!outputs.iter().any(|output| matches!(output, Output::HandOver { .. })));
        let position = Member::accept(78, &invite).epochs.position();
        assert_eq!(member.handover(78, position), None);
    }
    assert_eq!(out.head(), old);
    // A new invite is another matter.
    let invite = admin.invite(Uses::Once);
    assert!(meet(&mut Member::accept(78, &invite), admin));
}

#[test]
fn what_a_peer_hands_over_is_checked() {
    let (mut all, _) = circle(3);
    let old = all[1].epochs.position();
    let past = all[0].handover(3, Member::accept(3, &circle(2).1).epochs.position());
    all[0].rotate(&[], 60);
    let good = all[0].handover(2, old).unwrap();
    let mut give = |handover: Handover| {
        let outputs = all[1].step(Input::Received { peer: id(3), handover: Box::new(handover) });
        refusal(&outputs)
    };
    let forged = Some(Refusal::Forged(id(3)));
    let secret = EpochSecret::new([1; 32]);
    assert_eq!(give(Handover { secret, ..good.clone() }), forged, "another secret");
    let mut bad = good.clone();
    bad.roster.body.members.insert(id(66), NOW);
    assert_eq!(give(bad), forged, "somebody added");
    let mut bad = good.clone();
    bad.roster.signature[0] ^= 1;
    assert_eq!(give(bad), forged);
    let mut bad = good.clone();
    bad.roster.header.exclusion = true;
    assert_eq!(give(bad), forged);
    let mut bad = good.clone();
    bad.headers.push(bad.roster.header);
    assert_eq!(give(bad), Some(Refusal::Unlinked(id(3))));
    assert_eq!(give(past.unwrap()), Some(Refusal::NotNewer(id(3))), "replayed");
    assert_eq!(give(good.clone()), None);
    assert_eq!(give(good), Some(Refusal::NotNewer(id(3))), "again");
}

#[test]
fn a_roster_that_leads_from_nothing_known_is_refused() {
    let (mut all, _) = circle(2);
    // Signed by the admin's key, but a chain of its own.
    let admin = all[0].epochs.admin.clone().unwrap();
    let secret = EpochSecret::new([5; 32]);
    let topic = all[0].epochs.topic.clone();
    let header = Header {
        place: Place { epoch: 9, revision: 0 },
        previous: RosterHash([9; 32]),
        commitment: commitment(&topic, 9, &secret),
        body: [0; 32],
        grace: 0,
        issued_at: NOW,
        exclusion: false,
    };
    let body = Body { members: [(id(1), NOW), (id(2), NOW)].into(), ..Body::default() };
    let roster = Roster::sign(&topic, header, body, &admin).unverified();
    let handover = Handover { headers: vec![], roster, secret: secret.clone(), admissions: vec![] };
    let received = Input::Received { peer: id(1), handover: Box::new(handover) };
    let outputs = all[1].step(received.clone());
    assert_eq!(refusal(&outputs), Some(Refusal::Unlinked(id(1))));
    // Nor does the holder of an invite to epoch 2 take a chain that begins later.
    let (mut others, invite) = circle(2);
    others[0].rotate(&[], 0);
    let mut newcomer = Member::accept(2, &invite);
    assert_eq!(newcomer.epochs.topic, topic, "the same admin");
    assert_eq!(refusal(&newcomer.step(received)), Some(Refusal::Unlinked(id(1))));
}

#[test]
fn a_member_left_out_takes_no_roster_without_it() {
    let (mut all, _) = circle(3);
    let position = all[1].epochs.position();
    all[0].rotate(&[3], 0);
    let handover = all[0].handover(2, position).unwrap();
    let outputs = all[2].step(Input::Received { peer: id(2), handover: Box::new(handover) });
    assert_eq!(refusal(&outputs), Some(Refusal::NotForUs(id(2))));
}

/// A second gateway of the admin, at the same roster.
fn two_admins(size: u8) -> Vec<Member> {
    let (mut all, _) = circle(size);
    let key = Box::new(all[0].epochs.admin_key().unwrap().clone());
    all[1].step(Input::Command(Command::Administer(key)));
    assert!(all[1].epochs.is_admin());
    all
}

#[test]
fn of_two_rotations_with_one_number_the_lower_hash_wins_everywhere() {
    let mut all = two_admins(4);
    all[0].rotate(&[], 60);
    all[1].rotate(&[], 60);
    let heads = [all[0].head(), all[1].head()];
    assert_eq!(heads[0].0, heads[1].0);
    let lower = heads.iter().min_by_key(|(_, hash)| *hash).unwrap();
    let [one, two, three, four] = &mut all[..] else { panic!() };
    meet(three, one);
    meet(four, two);
    let lost = if one.head() == *lower { four.epochs.reads() } else { three.epochs.reads() };
    assert!(meet(three, four));
    assert_eq!((three.head(), four.head()), (*lower, *lower));
    // Whoever switched reads what was published in the epoch that lost.
    let switched = if one.head() == *lower { &four.epochs } else { &three.epochs };
    assert_eq!(switched.reads().len(), 3);
    assert!(switched.reads().starts_with(&lost));
    assert!(meet(one, two));
    assert_eq!((one.head(), two.head()), (*lower, *lower));
}

#[test]
fn an_exclusion_that_lost_is_repeated() {
    let mut all = two_admins(5);
    // Whichever hash is lower, both exclusions must come about.
    all[0].rotate(&[4], 0);
    all[1].rotate(&[5], 0);
    let [one, two, three, four, five] = &mut all[..] else { panic!() };
    for _ in 0..3 {
        meet(one, two);
        meet(three, one);
    }
    assert_eq!(one.head(), two.head());
    assert_eq!(one.head(), three.head());
    assert_eq!(one.epochs.members(), [id(1), id(2), id(3)].into());
    assert!(!meet(four, three) && !meet(five, three));
}

#[test]
fn whoever_came_by_an_ended_invite_on_the_losing_side_goes_with_it() {
    let mut all = two_admins(4);
    let many = all[1].invite(Uses::Many);
    let [one, two, three, _] = &mut all[..] else { panic!() };
    // Somebody who came long before is no suspect, even if the first has not heard of it.
    let mut early = Member::accept(33, &many);
    meet(one, two);
    meet(three, two);
    assert!(meet(&mut early, two));
    two.rotate(&[], 0);
    assert!(meet(&mut early, two));
    for member in [&mut *one, &mut *two, &mut *three] {
        member.now += 3_600;
    }
    // The first leaves out 4, while the second, which does not know, lets 4 in again as 44 and
    // goes on for several epochs.
    one.rotate(&[4], 0);
    let mut twin = Member::accept(44, &many);
    assert!(meet(&mut twin, two));
    two.rotate(&[], 0);
    two.rotate(&[], 0);
    assert!(two.epochs.is_member(id(44)));
    for _ in 0..3 {
        meet(one, two);
        meet(three, two);
    }
    assert_eq!((one.head(), three.head()), (two.head(), two.head()));
    assert_eq!(two.epochs.members(), [id(1), id(2), id(3), id(33)].into());
    assert!(!meet(&mut twin, three));
    assert!(meet(&mut early, three));
}

#[test]
fn an_invite_ended_by_an_exclusion_that_lost_ends_again() {
    let mut all = two_admins(3);
    let [one, two, three] = &mut all[..] else { panic!() };
    let many = one.invite(Uses::Many);
    meet(two, one);
    // Only the first ever heard of 9, took it in, and left it out again.
    let mut out = Member::accept(9, &many);
    assert!(meet(&mut out, one));
    one.rotate(&[], 0);
    one.rotate(&[9], 0);
    // The second goes further meanwhile, with the invite still open.
    (0..4).for_each(|_| drop(two.rotate(&[], 0)));
    meet(three, two);
    for _ in 0..3 {
        meet(one, two);
        meet(three, one);
    }
    assert_eq!((one.head(), three.head()), (two.head(), two.head()));
    for member in [one, two, three] {
        assert!(member.epochs.roster().unwrap().body().invites.is_empty());
        assert!(!meet(&mut out, member));
    }
}

#[test]
fn an_invite_that_lost_is_repeated_unless_somebody_was_left_out() {
    for (exclude, expected) in [(&[][..], true), (&[4][..], false)] {
        let mut all = two_admins(4);
        let invite = all[1].invite(Uses::Once);
        all[0].rotate(exclude, 0);
        let [one, two, ..] = &mut all[..] else { panic!() };
        meet(one, two);
        meet(one, two);
        assert_eq!(one.head(), two.head());
        assert_eq!(meet(&mut Member::accept(9, &invite), one), expected);
    }
}

#[test]
fn an_invite_for_one_admits_one() {
    let (mut all, _) = circle(3);
    let invite = all[0].invite(Uses::Once);
    let [admin, second, third] = &mut all[..] else { panic!() };
    meet(second, admin);
    meet(third, admin);
    let (mut early, mut late) = (Member::accept(8, &invite), Member::accept(9, &invite));
    assert!(meet(&mut early, second));
    assert!(!meet(&mut late, second), "the invite is used up");
    // On the other side of a partition nobody knows.
    assert!(meet(&mut late, third));
    assert!(meet(second, third));
    let rank = |member: &Member| member.epochs.admission.unwrap().rank(&member.epochs.topic);
    let winner = if rank(&early) < rank(&late) { id(8) } else { id(9) };
    for member in [&*second, &*third] {
        let members = member.epochs.members();
        assert_eq!(members.iter().filter(|one| **one >= id(8)).collect::<Vec<_>>(), [&winner]);
    }
    // The next roster has the winner, and the invite is gone.
    meet(second, admin);
    admin.rotate(&[], 0);
    let body = admin.epochs.roster().unwrap().body();
    assert!(body.members.contains_key(&winner) && body.members.len() == 4);
    let key = invite.key.verifying_key().to_bytes();
    assert!(!body.invites.contains_key(&key) && body.invites.len() == 1);
    let loser = if winner == id(8) { &mut late } else { &mut early };
    assert!(!meet(loser, admin));
}

#[test]
fn only_members_tell_of_admissions() {
    let (mut all, invite) = circle(2);
    let admission = *Member::accept(9, &invite).epochs.admission().unwrap();
    let outputs = all[0].step(Input::Told { peer: id(66), admissions: vec![admission] });
    assert_eq!(outputs, [Output::Refused(Refusal::NotMember(id(66)))]);
    let mut forged = admission;
    forged.member = id(10);
    assert_eq!(all[0].step(Input::Told { peer: id(2), admissions: vec![forged] }), []);
    let outputs = all[0].step(Input::Told { peer: id(2), admissions: vec![admission] });
    assert_eq!(outputs, [Output::Persist]);
    assert_eq!(all[0].step(Input::Told { peer: id(2), admissions: vec![admission] }), []);
    // Nor does an admission count that somebody else shows.
    assert!(!all[1].epochs.welcomes(id(66), Some(&admission)));
    let mut position = Member::accept(9, &invite).epochs.position();
    position.admission = Some(admission);
    assert_eq!(all[1].handover(66, position), None);
}

#[test]
fn commands_are_refused_with_a_reason() {
    let (mut all, _) = circle(3);
    let refused = |member: &mut Member, command| refusal(&member.step(Input::Command(command)));
    let rotate = |exclude: &[u8], grace| Command::Rotate {
        exclude: exclude.iter().map(|number| id(*number)).collect(),
        grace,
    };
    assert_eq!(refused(&mut all[1], rotate(&[], 0)), Some(Refusal::NotAdmin));
    let invite = Command::Invite { uses: Uses::Once, peers: vec![] };
    assert_eq!(refused(&mut all[1], invite.clone()), Some(Refusal::NotAdmin));
    let key = Box::new(SigningKey::from_bytes(&[9; 32]));
    assert_eq!(refused(&mut all[1], Command::Administer(key)), Some(Refusal::OtherAdmin));
    let head = all[0].head();
    assert_eq!(refused(&mut all[0], rotate(&[1], 0)), Some(Refusal::Myself));
    assert_eq!(refused(&mut all[0], rotate(&[66], 0)), Some(Refusal::NoSuchMember(id(66))));
    assert_eq!(refused(&mut all[0], rotate(&[2], MAX_GRACE + 1)), Some(Refusal::Grace));
    assert_eq!(all[0].head(), head, "nothing happened");
    for _ in 1..MAX_INVITES {
        assert_eq!(refused(&mut all[0], invite.clone()), None);
    }
    assert_eq!(refused(&mut all[0], invite), Some(Refusal::Invites));
}

#[test]
fn few_secrets_are_held_at_once() {
    let (mut all, _) = circle(1);
    for _ in 0..20 {
        all[0].now += 1;
        all[0].rotate(&[], MAX_GRACE);
    }
    let reads = all[0].epochs.reads();
    assert_eq!(reads.iter().map(|id| id.number).collect::<Vec<_>>(), (15..=22).collect::<Vec<_>>());
    assert!(all[0].epochs.secret_state().len() <= saved::MAX_SECRET_BYTES);
    const { assert!(saved::MAX_SECRET_BYTES <= 2_000) };
}

#[test]
fn a_topic_is_full_at_some_point() {
    let (mut all, invite) = circle(1);
    let key = invite.key;
    for number in 0..1_100_u32 {
        let mut member = [0xaa; 32];
        member[..4].copy_from_slice(&number.to_be_bytes());
        let admission = Admission::sign(&all[0].epochs.topic, &key, MemberId(member));
        all[0].epochs.admit(admission, Source::Member);
    }
    assert_eq!(all[0].epochs.members().len(), MAX_MEMBERS);
    all[0].rotate(&[], 0);
    assert_eq!(all[0].epochs.roster().unwrap().body().members.len(), MAX_MEMBERS);
}

#[test]
fn the_state_survives_a_restart() {
    let mut all = two_admins(3);
    let invite = all[0].invite(Uses::Many);
    all[0].rotate(&[], 60);
    let mut newcomer = Member::accept(9, &invite);
    assert!(meet(&mut newcomer, &mut all[0]));
    all[0].rotate(&[3], 60);
    all.push(newcomer);
    all.push(Member::accept(10, &invite));
    for member in &all {
        let epochs = &member.epochs;
        let (open, secret) = (epochs.open_state(), epochs.secret_state());
        let restored = Epochs::restore(epochs.me, &open, &secret, NOW).unwrap();
        assert_eq!(restored.open_state(), open);
        assert_eq!(*restored.secret_state(), *secret);
        assert_eq!(restored.resume(), epochs.resume());
        // The open part has nothing secret in it.
        let mut secrets = vec![epochs.topic_key.expose().to_vec()];
        secrets.extend(epochs.held.iter().map(|held| held.secret.expose().to_vec()));
        secrets.extend(epochs.admin.iter().map(|key| key.as_bytes().to_vec()));
        for secret in &secrets {
            assert!(!open.windows(32).any(|part| part == secret));
            let shown = format!("{epochs:?} {:?}", epochs.held);
            assert!(!shown.contains(&hex::encode(&secret[..8])), "{shown}");
            assert!(!shown.contains(&format!("{:?}", &secret[..8])), "{shown}");
        }
        for length in 0..open.len() {
            assert!(Epochs::restore(epochs.me, &open[..length], &secret, NOW).is_err());
        }
        for length in 0..secret.len() {
            assert!(Epochs::restore(epochs.me, &open, &secret[..length], NOW).is_err());
        }
    }
    // Parts of two topics do not fit.
    let other = Member::create(7).epochs;
    let open = all[0].epochs.open_state();
    assert!(Epochs::restore(id(1), &open, &other.secret_state(), NOW).is_err());
}

#[test]
fn a_crash_between_the_two_parts_leaves_the_old_state() {
    let (mut all, _) = circle(2);
    let open = all[0].epochs.open_state();
    let old = all[0].epochs.publishes_in();
    all[0].rotate(&[], 60);
    let restored = Epochs::restore(id(1), &open, &all[0].epochs.secret_state(), NOW).unwrap();
    assert_eq!(restored.publishes_in(), old);
    assert_eq!(restored.reads(), [old.unwrap()]);
}

#[test]
fn what_the_admin_did_is_remembered_for_a_while() {
    let (mut all, _) = circle(3);
    all[0].rotate(&[3], 0);
    let deeds: Vec<_> = all[0].epochs.wishes.iter().map(|wish| wish.what.clone()).collect();
    assert_eq!(deeds, [Deed::LeftOut([id(3)].into())], "and the invites are settled with it");
    all[0].now += 31 * 24 * 3_600;
    assert_eq!(all[0].step(Input::Tick), [Output::Persist]);
    assert_eq!(all[0].epochs.wishes, []);
}

/// Whatever a peer sends is parsed first; this holds the two together.
#[test]
fn a_handover_survives_the_wire() {
    let (mut all, invite) = circle(3);
    let position = Member::accept(2, &invite).epochs.position();
    let handover = all[0].handover(2, position).unwrap();
    let message = Message::Handover(Box::new(handover));
    assert_eq!(Message::decode(&message.encode()).unwrap(), message);
    let Message::Handover(handover) = message else { panic!() };
    let UnverifiedRoster { header, .. } = handover.roster;
    assert_eq!(header.place.epoch, 2);
}
