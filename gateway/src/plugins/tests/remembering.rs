//! The capabilities `kv` and `lookup`, used by a guest.

use super::*;

#[test]
fn a_plugin_remembers_in_all_its_instances() {
    let mut plugins = Plugins::new().store_fixture("a", "").load();
    assert_eq!(plugins.answer("get x"), "blocked: None");
    assert_eq!(plugins.answer("set x 17"), "blocked: Ok(())");
    plugins.worker = plugins.chain.worker();
    assert_eq!(plugins.answer("get x"), "blocked: Some(\"17\")");
    assert_eq!(plugins.answer("increment x 3"), "blocked: Ok(20)");
    assert_eq!(plugins.answer("increment y -2 100"), "blocked: Ok(-2)");
    assert_eq!(plugins.answer("set x word 0"), "blocked: Ok(())");
    assert_eq!(plugins.answer("get x"), "blocked: None", "its time was over at once");
    assert_eq!(plugins.answer("set x word"), "blocked: Ok(())");
    assert_eq!(plugins.answer("increment x 1"), "blocked: Err(\"not-a-counter\")");
    assert_eq!(plugins.answer("delete x"), "blocked: true");
    assert_eq!(plugins.answer("delete x"), "blocked: false");
    assert_eq!(plugins.answer("long 65536"), "blocked: Ok(())");
    assert_eq!(plugins.answer("long 65537"), "blocked: Err(\"size\")");
}

#[test]
fn plugins_do_not_see_what_others_remember_and_a_new_chain_does() {
    let plugins = Plugins::new()
        .store_fixture("a", "[applies_to]\nkinds = [1]")
        .store_fixture("b", "[applies_to]\nkinds = [2]");
    let services = services();
    let mut loaded = plugins.load_with(services.clone());
    assert_eq!(loaded.answer("set x 1"), "blocked: Ok(())");
    let get =
        |loaded: &mut Loaded, kind| match loaded.ask_with(&event(kind, "get x"), &client(), &[]) {
            Decision::Reject(reason) => reason.text.into_owned(),
            other => panic!("{other:?}"),
        };
    assert_eq!(get(&mut loaded, 2), "None");
    let mut loaded = plugins.load_with(services);
    assert_eq!((get(&mut loaded, 1), get(&mut loaded, 2)), ("Some(\"1\")".into(), "None".into()));
}

#[test]
fn the_quota_is_what_the_manifest_says() {
    // A key of 4 or 5 bytes, 100 bytes, and 64 for the key.
    let mut plugins = Plugins::new().store_fixture("a", "limits.kv_bytes = 1700").load();
    assert_eq!(plugins.answer("fill"), "blocked: 10 keys, then quota");
    let mut plugins = Plugins::new().store_fixture("a", "limits.kv_keys = 7").load();
    assert_eq!(plugins.answer("fill"), "blocked: 7 keys, then quota");
    assert_eq!(plugins.answer("set key3 more"), "blocked: Ok(())", "what is there may change");
}

/// Everybody has 70 events and follows one.
struct Full;

impl Lookup for Full {
    fn author(&self, _: &PublicKey, most: u32, cost: &mut Cost) -> Result<AuthorHeld, LookupError> {
        cost.pay(70)?;
        Ok(AuthorHeld { events: most.min(70), profile: true, follows: false })
    }

    fn how_many(
        &self,
        authors: &[PublicKey],
        kinds: &[u16],
        since: u64,
        most: u32,
        cost: &mut Cost,
    ) -> Result<u32, LookupError> {
        cost.pay(1)?;
        assert_eq!((kinds, since), (&[1, 7][..], 1_000));
        Ok(most.min(u32::try_from(authors.len()).unwrap() * 70))
    }

    fn follows(
        &self,
        author: &PublicKey,
        most: usize,
        cost: &mut Cost,
    ) -> Result<Vec<PublicKey>, LookupError> {
        cost.pay(3_000)?;
        Ok(vec![*author; most])
    }

    fn is_followed(
        &self,
        author: &PublicKey,
        whom: &PublicKey,
        _: &mut Cost,
    ) -> Result<bool, LookupError> {
        if author == whom {
            return Err(LookupError::Store(StoreError("it is closed".to_owned())));
        }
        Ok(true)
    }

    fn newest_tags(
        &self,
        author: &PublicKey,
        kind: u16,
        most: usize,
        cost: &mut Cost,
    ) -> Result<Vec<Vec<String>>, LookupError> {
        cost.pay(1)?;
        assert_eq!(kind, 10_000);
        Ok(vec![vec!["p".to_owned(), author.to_string()]; most])
    }
}

fn with(lookup: impl Lookup) -> Loaded {
    Plugins::new()
        .store_fixture("a", "limits.time_ms = 5000\n")
        .load_with(Services { lookup: Arc::new(lookup), ..services() })
}

#[test]
fn a_plugin_asks_the_store() {
    let mut plugins = with(Full);
    let other = "ee".repeat(32);
    assert_eq!(
        plugins.answer(&format!("author {AUTHOR}")),
        "blocked: Ok(Author { events: 70, has-profile: true, has-follows: false })"
    );
    assert_eq!(plugins.answer("author alice"), "blocked: Err(\"invalid\")");
    assert_eq!(plugins.answer(&format!("count {AUTHOR},{other} 1,7 1000 100")), "blocked: Ok(100)");
    assert_eq!(plugins.answer("count x 1,7 1000 100"), "blocked: Err(\"invalid\")");
    let many = vec![AUTHOR; 101].join(",");
    assert_eq!(plugins.answer(&format!("count {many} 1 1 1")), "blocked: Err(\"invalid\")");
    assert_eq!(plugins.answer(&format!("follows {AUTHOR} {other}")), "blocked: Ok(true)");
    let log = logged(|| {
        let unavailable = plugins.answer(&format!("follows {AUTHOR} {AUTHOR}"));
        assert_eq!(unavailable, "blocked: Err(\"unavailable\")");
    });
    assert!(log.contains("it is closed"), "{log}");
    let too_long = plugins.answer(&format!("list {AUTHOR} 5"));
    assert_eq!(too_long, "blocked: Err(\"cost\")", "more rows than one question may read");
    assert_eq!(
        plugins.answer(&format!("tags {AUTHOR} 10000 1")),
        format!("blocked: Ok([[\"p\", \"{AUTHOR}\"]])")
    );
    for kind in [1, 5, 1_059, 20_000, 30_000] {
        let answer = plugins.answer(&format!("tags {AUTHOR} {kind} 1"));
        assert_eq!(answer, "blocked: Err(\"invalid\")", "of kind {kind} one may have many");
    }
}

#[test]
fn a_call_may_only_ask_for_so_much() {
    let mut plugins = with(Full);
    for _ in 0..2 {
        // 71 times 70 rows, then the rest of 5000; and again with the next call.
        let answer = plugins.answer(&format!("asks {AUTHOR} 100"));
        assert_eq!(answer, "blocked: 71 answered, 29 refused");
    }
}

/// As slow as it may be.
struct Slow;

impl Lookup for Slow {
    fn author(&self, _: &PublicKey, _: u32, cost: &mut Cost) -> Result<AuthorHeld, LookupError> {
        loop {
            // Rows that take longer than there is time for.
            thread::sleep(Duration::from_millis(5));
            cost.pay(64)?;
        }
    }

    fn how_many(
        &self,
        _: &[PublicKey],
        _: &[u16],
        _: u64,
        _: u32,
        _: &mut Cost,
    ) -> Result<u32, LookupError> {
        thread::sleep(Duration::from_millis(200));
        Ok(1)
    }

    fn follows(
        &self,
        _: &PublicKey,
        _: usize,
        _: &mut Cost,
    ) -> Result<Vec<PublicKey>, LookupError> {
        Ok(Vec::new())
    }

    fn is_followed(&self, _: &PublicKey, _: &PublicKey, _: &mut Cost) -> Result<bool, LookupError> {
        Ok(false)
    }

    fn newest_tags(
        &self,
        _: &PublicKey,
        _: u16,
        _: usize,
        _: &mut Cost,
    ) -> Result<Vec<Vec<String>>, LookupError> {
        Ok(Vec::new())
    }
}

#[test]
fn slow_answers_are_cut_off_and_leave_no_time_for_others() {
    let mut plugins = with(Slow);
    let began = Instant::now();
    let answer = plugins.answer(&format!("asks {AUTHOR} 50"));
    assert_eq!(answer, "blocked: 0 answered, 50 refused");
    // 20 ms for all 50 together, and what the machine made of it.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn the_time_of_an_answer_is_that_of_the_call() {
    let mut plugins = Plugins::new()
        .store_fixture("a", "limits.time_ms = 100\n")
        .load_with(Services { lookup: Arc::new(Slow), ..services() });
    let log = logged(|| assert_eq!(plugins.answer("count  1 1 1"), "error: plugin a failed"));
    assert!(log.contains("it ran longer than 100 ms"), "{log}");
}
