//! Test vectors for other implementations: `docs/private-topics.json`, printed in
//! `docs/private-topics.md`. They are a contract: a change of any is another protocol version.

use std::{fs, path::Path};

use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    MemberId, Topic,
    admin_key::AdminKey,
    admission::Admission,
    derive::{EpochKeys, EpochSecret, TopicKey, tag_key},
    invite::{Invite, Peer},
    proof::{Binding, Role},
    roster::{Body, Header, Place, Roster, RosterHash, Uses},
    seal::Sealer,
};
use crate::protocol::{TopicName, hex};

fn vectors() -> Value {
    let admin = SigningKey::from_bytes(&[0x11; 32]);
    let topic = Topic {
        admin: admin.verifying_key().to_bytes(),
        name: TopicName::new("Lesekreis Süd").unwrap(),
    };
    let (topic_key, epoch) = (TopicKey::new([0x22; 32]), 3);
    let secret = EpochSecret::new([0x33; 32]);
    let keys = EpochKeys::derive(&topic, epoch, &secret);
    let invite_key = SigningKey::from_bytes(&[0x44; 32]);
    let invite_public = invite_key.verifying_key().to_bytes();
    let (initiator, responder) = (MemberId([0x55; 32]), MemberId([0x66; 32]));

    let frame = r#"{"not":"an event"}"#;
    let sealed = Sealer::new(&topic, epoch, &keys).seal(frame.as_bytes()).unwrap();

    let material = Zeroizing::new([0x77; 32]);
    let binding = Binding { material, initiator, responder };
    let side = |role| {
        json!({
            "tag": hex::encode(&binding.tag(&topic, &topic_key, role)),
            "proof": hex::encode(&binding.prove(&keys, epoch, role)),
        })
    };

    let header = Header {
        place: Place { epoch, revision: 1 },
        previous: RosterHash([0x88; 32]),
        commitment: keys.commitment,
        body: [0; 32],
        grace: 600,
        issued_at: 1_800_000_000,
        exclusion: false,
    };
    let body = Body {
        members: [(initiator, 1_799_000_000), (responder, 1_800_000_000)].into(),
        invites: [(invite_public, Uses::Once)].into(),
    };
    let roster = Roster::sign(&topic, header, body, &admin);
    let mut roster_bytes = Vec::new();
    roster.unverified().write(&mut roster_bytes);

    let admission = Admission::sign(&topic, &invite_key, initiator);
    let mut admission_bytes = Vec::new();
    admission.write(&mut admission_bytes);

    let invite = Invite {
        topic: topic.clone(),
        topic_key: topic_key.clone(),
        epoch,
        secret: secret.clone(),
        key: invite_key.clone(),
        peers: vec![Peer { id: responder, addresses: vec!["192.0.2.1:4870".parse().unwrap()] }],
    };

    let admin_key = AdminKey { name: topic.name.clone(), key: admin.clone() };

    json!({
        "given": {
            "admin secret key": hex::encode(admin.as_bytes()),
            "admin public key": hex::encode(&topic.admin),
            "topic name": topic.name.as_str(),
            "topic key": hex::encode(topic_key.expose()),
            "epoch": epoch,
            "epoch secret": hex::encode(secret.expose()),
            "invite secret key": hex::encode(invite_key.as_bytes()),
            "invite public key": hex::encode(&invite_public),
            "initiator": initiator.to_string(),
            "responder": responder.to_string(),
            "keying material": hex::encode(&*binding.material),
        },
        "derived": {
            "discovery topic": hex::encode(&keys.discovery_topic),
            "discovery secret": hex::encode(&*keys.discovery_secret),
            "gossip topic": hex::encode(&keys.gossip_topic),
            "encryption": hex::encode(&*keys.encryption),
            "nonce": hex::encode(&*keys.nonce),
            "membership proof": hex::encode(&*keys.proof),
            "commitment": hex::encode(&keys.commitment),
            "topic tag": hex::encode(&*tag_key(&topic, &topic_key)),
        },
        "frame": { "plain": frame, "sealed": hex::encode(&sealed) },
        "stream": { "initiator": side(Role::Initiator), "responder": side(Role::Responder) },
        "roster": {
            "bytes": hex::encode(&roster_bytes),
            "hash": hex::encode(&roster.hash().0),
        },
        "admission": {
            "bytes": hex::encode(&admission_bytes),
            "rank": hex::encode(&admission.rank(&topic)),
        },
        "invite": invite.encode().as_str(),
        "admin key": admin_key.encode().as_str(),
    })
}

/// Run with `UPDATE_SNAPSHOTS=1` to write both files anew after a change that is meant.
#[test]
fn the_documented_vectors_are_what_the_code_makes() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let expected = serde_json::to_string_pretty(&vectors()).unwrap() + "\n";
    let (file, page) = (docs.join("private-topics.json"), docs.join("private-topics.md"));
    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once("```json\n").unwrap();
    let (shown, after) = rest.split_once("```").unwrap();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&file, &expected).unwrap();
        fs::write(&page, format!("{before}```json\n{expected}```{after}")).unwrap();
        return;
    }
    assert_eq!(fs::read_to_string(file).unwrap(), expected);
    assert_eq!(shown, expected);
}
