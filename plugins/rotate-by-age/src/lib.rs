//! Gives private topics a new secret when theirs is old, and leaves out who was not seen for long.

use nostr_gateway_plugin::{
    config, export_secret_rotation, log,
    rotation::{Decision, Plan, SecretRotation, Topic},
};

/// 30 days, and 10 minutes.
const MAX_AGE: u64 = 30 * 24 * 3_600;
const GRACE: u32 = 600;

struct RotateByAge {
    max_age: u64,
    /// 0 for never.
    drop_unseen_after: u64,
    grace: u32,
}

impl SecretRotation for RotateByAge {
    fn init() -> Result<Self, String> {
        let max_age = config::optional("max_age")?.unwrap_or(MAX_AGE);
        if max_age == 0 {
            return Err("max_age: want a number of seconds above 0".to_owned());
        }
        Ok(Self {
            max_age,
            drop_unseen_after: config::optional("drop_unseen_after")?.unwrap_or(0),
            grace: config::optional("grace")?.unwrap_or(GRACE),
        })
    }

    fn decide(&mut self, topic: Topic) -> Decision {
        if topic.now.saturating_sub(topic.since) < self.max_age {
            return Decision::Keep;
        }
        let exclude = self.unseen(&topic);
        if !exclude.is_empty() {
            log::info(&format!("leaving out {} unseen members", exclude.len()));
        }
        Decision::Rotate(Plan { grace: self.grace, exclude })
    }
}

impl RotateByAge {
    /// Members that were neither seen nor put on the roster for long. Of one that was never seen and
    /// has no date nobody knows how long that is.
    fn unseen(&self, topic: &Topic) -> Vec<String> {
        if self.drop_unseen_after == 0 {
            return Vec::new();
        }
        let is_unseen = |since: Option<u64>, seen: Option<u64>| {
            let last = since.max(seen);
            last.is_some_and(|last| topic.now.saturating_sub(last) > self.drop_unseen_after)
        };
        let members = topic.members.iter().filter(|member| !member.is_self);
        let unseen = members.filter(|member| is_unseen(member.since, member.last_seen));
        unseen.map(|member| member.id.clone()).collect()
    }
}

export_secret_rotation!(RotateByAge);

#[cfg(test)]
mod tests {
    use nostr_gateway_plugin::{rotation::Member, testing::Gateway};

    use super::*;

    fn member(id: &str, since: Option<u64>, last_seen: Option<u64>) -> Member {
        Member { id: id.to_owned(), is_self: id == "me", since, last_seen }
    }

    #[test]
    fn old_secrets_change_and_unseen_members_go() {
        let mut plugin = RotateByAge { max_age: 100, drop_unseen_after: 50, grace: 7 };
        let members = vec![
            member("me", Some(1), None),
            member("gone", Some(1), Some(900)),
            member("never seen", Some(1), None),
            member("seen", Some(1), Some(960)),
            member("new", Some(990), None),
            member("admitted", None, None),
        ];
        let topic = |since| Topic {
            name: "t".to_owned(),
            epoch: 3,
            since,
            now: 1_000,
            members: members.clone(),
        };
        assert_eq!(plugin.decide(topic(901)), Decision::Keep);
        assert_eq!(plugin.unseen(&topic(900)), ["gone", "never seen"]);
        plugin.drop_unseen_after = 0;
        let nobody = Plan { grace: 7, exclude: Vec::new() };
        assert_eq!(plugin.decide(topic(900)), Decision::Rotate(nobody));
    }

    #[test]
    fn it_is_configured_as_its_manifest_says() {
        let gateway = Gateway::of("plugin.toml");
        let topic = |since| Topic {
            name: "t".to_owned(),
            epoch: 1,
            since,
            now: 100_000_000,
            members: vec![member("gone", Some(1), Some(1))],
        };
        let mut plugin = gateway.start_secret_rotation::<RotateByAge>().unwrap();
        assert_eq!(plugin.decide(topic(100_000_000 - MAX_AGE + 1)), Decision::Keep);
        let nobody = Plan { grace: GRACE, exclude: Vec::new() };
        assert_eq!(plugin.decide(topic(100_000_000 - MAX_AGE)), Decision::Rotate(nobody));
        assert_eq!(gateway.log(), [""; 0]);

        let gateway = gateway.with_config("drop_unseen_after", 3_600).with_config("max_age", 5);
        let mut plugin = gateway.start_secret_rotation::<RotateByAge>().unwrap();
        let without = Plan { grace: GRACE, exclude: vec!["gone".to_owned()] };
        assert_eq!(plugin.decide(topic(100_000_000 - 5)), Decision::Rotate(without));
        assert_eq!(gateway.log(), ["info: leaving out 1 unseen members"]);

        let refused = |key, value: i64| {
            let gateway = Gateway::new().with_config(key, value);
            gateway.start_secret_rotation::<RotateByAge>().err().unwrap()
        };
        assert_eq!(refused("max_age", 0), "max_age: want a number of seconds above 0");
        assert_eq!(refused("grace", -1), "config.grace: invalid value: integer `-1`, expected u32");
    }
}
