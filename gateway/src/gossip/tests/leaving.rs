//! Leaving topics: for good, also those that could not be joined again, and never with the only admin
//! key unasked.

use super::{sync::CannotSync, *};
use crate::{
    pipeline::{Secret, SecretStore},
    protocol::private::{admin_key::AdminKey, epochs::Refusal, invite::Invite},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_operator_left_no_visit_brings_back() {
    let a = Gateway::with(alone(), &[], Arc::default(), 5).await;
    let membership = a.gossip.membership();
    let visit = |topic: &str| membership.clone().visit(name(topic));
    visit("cats").await.unwrap();
    visit("birds").await.unwrap();
    let somebody = a.joined.enter(&name("birds")).unwrap();
    membership.leave(&name("cats"), false).await.unwrap();
    for _ in 0..2 {
        let refused = visit("cats").await.unwrap_err();
        assert!(refused.contains("operator") && refused.contains("topic join"), "{refused}");
    }
    assert!(!a.joined.contains("cats") && a.joined.contains("birds"));
    // What was left because nobody was there may be visited again.
    drop(somebody);
    let idle = async {
        while a.joined.contains("birds") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), idle).await.expect("nobody is in it");
    visit("birds").await.unwrap();
    // Until the operator joins it again; and a new start knows nothing of it.
    membership.join(name("cats"), HowJoined::Command).await.unwrap();
    visit("cats").await.unwrap();
    membership.leave(&name("cats"), false).await.unwrap();
    let kept = a.kept.clone();
    a.stop().await;
    let a = Gateway::with(alone(), &[], kept, 5).await;
    assert!(!a.joined.contains("cats"));
    a.gossip.membership().clone().visit(name("cats")).await.unwrap();
    a.stop().await;
}

/// These topics are shown as failed, and no others are shown. Returns why.
fn failed(gateway: &Gateway, names: &[&str]) -> Vec<String> {
    let topics = gateway.gossip.status();
    let shown: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(shown, names);
    gateway.gossip.measure();
    let figures = gateway.metrics.render();
    for name in names {
        let state = format!(r#"topic_state{{topic="{name}",state="failed"}} 1"#);
        assert!(figures.contains(&state), "{state}: {figures}");
    }
    assert!(topics.iter().all(|topic| topic.state == TopicPhase::Failed));
    topics.into_iter().filter_map(|topic| topic.reason).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_topic_that_was_not_joined_again_is_left() {
    let kept = Arc::<MemoryTopics>::default();
    let topic =
        KeptTopic { name: name("hidden"), how: HowJoined::Command, joined_at: 7, private: false };
    kept.keep(topic).await.unwrap();
    let a = Gateway::with(alone(), &[], kept.clone(), 0).await;
    let reason = failed(&a, &["hidden"]).remove(0);
    assert!(reason.contains("is the name of a private topic here"), "{reason}");
    a.gossip.membership().leave(&name("hidden"), false).await.unwrap();
    assert!(kept.load().await.unwrap().is_empty() && a.gossip.status().is_empty());
    let error = a.gossip.membership().leave(&name("hidden"), false).await.unwrap_err();
    assert!(matches!(error, TopicError::Private(_)), "{error}");
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_topic_whose_secret_is_away_is_left() {
    let a = Gateway::with(alone(), &[], Arc::default(), 0).await;
    a.gossip.membership().create_private(name("den")).await.unwrap();
    a.gossip.membership().create_private(name("attic")).await.unwrap();
    let kept = a.kept.clone();
    let secrets = a.secrets.list("topic/").await.unwrap();
    assert_eq!(secrets.len(), 2);
    a.stop().await;

    let b = Gateway::with(alone(), &[], kept, 0).await;
    let membership = b.gossip.membership();
    for reason in failed(&b, &["attic", "den"]) {
        assert!(reason.contains("its secret is not in the secret store"), "{reason}");
    }
    let left = |topic: &str| {
        let kept = b.kept.1.lock().unwrap();
        kept.iter().find(|kept| kept.name == name(topic)).unwrap().is_left
    };
    // Should it come back, the admin's key would be in it.
    let error = membership.leave(&name("den"), false).await.unwrap_err();
    assert!(matches!(error, TopicError::SecretAway), "{error}");
    assert!(error.to_string().contains("--forget-admin-key") && !left("den"), "{error}");
    membership.leave(&name("den"), true).await.unwrap();
    assert!(left("den") && !left("attic"));
    failed(&b, &["attic"]);
    let error = membership.leave(&name("den"), false).await.unwrap_err();
    assert!(matches!(error, TopicError::Private(_)), "{error}");

    // A secret that does not fit may hold the admin's key all the same. Which of the two names is that
    // of the attic does not matter: both are tried.
    for secret in &secrets {
        b.secrets.set(secret, Secret::new(b"of no use".to_vec())).await.unwrap();
    }
    let error = membership.leave(&name("attic"), false).await.unwrap_err();
    assert!(matches!(error, TopicError::SecretHere), "{error}");
    assert!(!left("attic"));
    membership.leave(&name("attic"), true).await.unwrap();
    assert!(left("attic"));
    assert_eq!(b.secrets.list("topic/").await.unwrap().len(), 1, "its secret is gone");
    // One that was left, and whose secret was not removed then.
    membership.leave(&name("den"), true).await.unwrap();
    assert!(b.secrets.list("topic/").await.unwrap().is_empty());
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_does_not_overwrite_an_admin_key_of_before() {
    let a = Gateway::with(alone(), &[], Arc::default(), 0).await;
    let den = name("den");
    a.gossip.membership().create_private(den.clone()).await.unwrap();
    let invite = a.gossip.membership().invite(&den, false).await.unwrap();
    let invite = Box::new(Invite::parse(&invite).unwrap());
    let secret_name = a.secrets.list("topic/").await.unwrap().remove(0);
    let secret = a.secrets.get(&secret_name).await.unwrap().unwrap();
    let kept = Arc::<MemoryTopics>::default();
    *kept.1.lock().unwrap() = a.kept.1.lock().unwrap().clone();
    // One that could not be joined again, and one of which the database knows nothing any more.
    for kept in [kept, Arc::default()] {
        let b = Gateway::with(alone(), &[], kept, 0).await;
        let membership = b.gossip.membership();
        b.secrets.set(&secret_name, secret.clone()).await.unwrap();
        let error = membership.accept(invite.clone()).await.unwrap_err();
        assert!(matches!(error, TopicError::AdminKeyOfBefore(_)), "{error}");
        assert_eq!(b.secrets.get(&secret_name).await.unwrap().as_ref(), Some(&secret));
        let error = membership.leave(&den, false).await.unwrap_err();
        assert!(matches!(error, TopicError::SecretHere), "{error}");
        // As the text says it.
        membership.leave(&den, true).await.unwrap();
        assert!(b.secrets.list("topic/").await.unwrap().is_empty());
        assert_eq!(membership.accept(invite.clone()).await.unwrap(), Joining::Joined);
        assert_ne!(b.secrets.get(&secret_name).await.unwrap().as_ref(), Some(&secret));
        b.stop().await;
    }
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_without_a_desk_is_not_said_to_be_watched_by_many() {
    let a = Gateway::start(alone(), &[name("test")]).await;
    let membership = a.gossip.membership();
    membership.sync(&name("test")).unwrap();
    let error = membership.sync(&name("nowhere")).unwrap_err();
    assert!(matches!(error, TopicError::NotJoined(_)), "{error}");
    let library = &membership.shared.library;
    library.close(&library.desk(&name("test")).unwrap());
    let error = membership.sync(&name("test")).unwrap_err();
    assert!(matches!(error, TopicError::CannotSync(CannotSync::NoDesk)), "{error}");
    assert!(!error.to_string().contains("many"), "{error}");
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_key_is_not_forgotten_unasked_and_goes_to_another_member() {
    let a = Gateway::with(alone(), &[], Arc::default(), 0).await;
    let b = Gateway::with(alone(), &[], Arc::default(), 0).await;
    let (at_a, at_b, den) = (a.gossip.membership(), b.gossip.membership(), name("den"));
    at_a.create_private(den.clone()).await.unwrap();
    let key = AdminKey::parse(&at_a.export_admin(&den).unwrap()).unwrap();
    let error = at_b.import_admin(key.clone()).await.unwrap_err();
    assert!(matches!(error, TopicError::NotJoined(_)), "{error}");

    let invite = Invite::parse(&at_a.invite(&den, false).await.unwrap()).unwrap();
    at_b.accept(Box::new(invite)).await.unwrap();
    let admitted = async {
        while at_b.private_status(&den).unwrap().epoch.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), admitted).await.expect("A lets B in");
    let refused = |error: TopicError| match error {
        TopicError::Refused(refusal) => refusal,
        error => panic!("{error}"),
    };
    assert_eq!(refused(at_b.export_admin(&den).unwrap_err()), Refusal::NotAdmin);
    assert_eq!(refused(at_b.rotate(&den, &[], None).await.unwrap_err()), Refusal::NotAdmin);
    // The key of another topic of this name, and of the same admin's topic of another name.
    let mut other = key.clone();
    other.key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    assert_eq!(refused(at_b.import_admin(other).await.unwrap_err()), Refusal::OtherAdmin);
    let other = AdminKey { name: name("attic"), ..key.clone() };
    let error = at_b.import_admin(other).await.unwrap_err();
    assert!(matches!(error, TopicError::NotJoined(_)), "{error}");
    assert!(!at_b.private_status(&den).unwrap().is_admin);

    let error = at_a.leave(&den, false).await.unwrap_err();
    assert!(matches!(error, TopicError::AdminKeyHere), "{error}");
    assert!(error.to_string().contains("--forget-admin-key"), "{error}");
    assert!(at_a.private_status(&den).unwrap().is_admin, "nothing has changed");
    let late = Invite::parse(&at_a.invite(&den, true).await.unwrap()).unwrap();

    assert_eq!(at_b.import_admin(key.clone()).await.unwrap(), Joining::Joined);
    assert_eq!(at_b.import_admin(key.clone()).await.unwrap(), Joining::Already);
    at_a.leave(&den, true).await.unwrap();
    assert!(a.secrets.list("topic/").await.unwrap().is_empty());
    a.gossip.measure();
    assert!(!a.metrics.render().contains(r#""den""#), "{}", a.metrics.render());
    // B does now what only the admin may.
    at_b.rotate(&den, &[a.gossip.id.to_string()], Some(0)).await.unwrap();
    let status = at_b.private_status(&den).unwrap();
    assert_eq!((status.epoch, status.members.len()), (Some(2), 1));
    let error = at_b.leave(&den, false).await.unwrap_err();
    assert!(matches!(error, TopicError::AdminKeyHere), "{error}");
    a.stop().await;
    b.stop().await;

    // Nobody is there any more to let somebody in.
    let c = Gateway::with(alone(), &[], Arc::default(), 0).await;
    c.gossip.membership().accept(Box::new(late)).await.unwrap();
    let error = c.gossip.membership().import_admin(key).await.unwrap_err();
    assert!(matches!(error, TopicError::NotAdmitted), "{error}");
    c.stop().await;
}
