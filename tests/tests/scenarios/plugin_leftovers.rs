//! What is left of a plugin when it has changed or gone.

use std::{fs, path::Path, time::Duration};

use nostr_gateway_tests::{GatewayBuilder, RawClient, events, eventually};
use nostr_sdk::Keys;

use crate::{GATEWAY, alone};

const SOON: Duration = Duration::from_secs(30);

/// Writes a plugin of the fixtures' component into a folder.
fn write(folder: &Path, id: &str, component: &str, capabilities: &str, more: &str) {
    fs::create_dir_all(folder).unwrap();
    let file = format!("{component}.wasm");
    let built =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(component).join(&file);
    fs::copy(built, folder.join(&file)).unwrap();
    let text = format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\nfile = \"{file}\"\n\
         capabilities = {capabilities}\n{more}"
    );
    fs::write(folder.join("plugin.toml"), text).unwrap();
}

async fn answer(client: &mut RawClient, content: &str) -> String {
    client.publish(&events::note(&Keys::generate(), content)).await.1
}

/// Also without a gateway that could forget it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_remembers_goes_with_it_unless_it_is_to_be_kept() {
    let _alone = alone().await;
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("store");
    write(
        &folder,
        "store",
        "fixtures-store",
        r#"["log", "kv", "lookup"]"#,
        "limits.time_ms = 1000",
    );
    let add = ["plugin", "add", folder.to_str().unwrap(), "--grant", "kv,lookup"];
    let remove = ["plugin", "remove", "store"];
    let keep = ["plugin", "remove", "store", "--keep-data"];
    let builder = GatewayBuilder::new(GATEWAY, "A").set("plugins", "budget_ms", "5000");
    // Where there is no database yet.
    builder.command(&add).await.succeeded();
    builder.command(&remove).await.succeeded();

    let mut gateway = builder.clone().start().await;
    gateway.command(&add).await.succeeded();
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(answer(&mut client, "set x 17").await, "blocked: Ok(())");
    let kept = gateway.command(&keep).await;
    assert_eq!(kept.stdout, "removed store; what it remembers is kept\n");
    gateway.command(&add).await.succeeded();
    assert_eq!(answer(&mut client, "get x").await, "blocked: Some(\"17\")");
    gateway.command(&remove).await.succeeded();
    gateway.command(&add).await.succeeded();
    assert_eq!(answer(&mut client, "get x").await, "blocked: None");

    assert_eq!(answer(&mut client, "set x 18").await, "blocked: Ok(())");
    assert!(gateway.interrupt().await.success());
    builder.command(&keep).await.succeeded();
    builder.command(&add).await.succeeded();
    let mut gateway = builder.clone().start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(answer(&mut client, "get x").await, "blocked: Some(\"18\")");
    assert!(gateway.interrupt().await.success());
    builder.command(&remove).await.succeeded();
    builder.command(&add).await.succeeded();
    let gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(answer(&mut client, "get x").await, "blocked: None");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_version_gives_its_memory_back_without_another_event() {
    let _alone = alone().await;
    let builder = GatewayBuilder::new(GATEWAY, "A").set("plugins", "budget_ms", "5000");
    let folder = builder.plugin_folder("a");
    let capabilities = r#"["log", "config", "clock"]"#;
    write(&folder, "a", "fixtures", capabilities, "limits.time_ms = 2000\n");
    let gateway = builder.start().await;
    let mut client = RawClient::connect(&gateway.url()).await;
    assert_eq!(answer(&mut client, "hold:40").await, "blocked: held 40");
    let memory = r#"nostr_gateway_plugin_memory_bytes{plugin="a""#;
    assert!(gateway.metric(memory).await > 40 << 20);
    write(&folder, "a", "fixtures", capabilities, "limits.time_ms = 2001\n");
    eventually("nobody holds it any more", SOON, async || {
        (gateway.metric(memory).await < 40 << 20).then_some(())
    })
    .await;
    let taken = r#"nostr_gateway_plugin_swaps_total{plugin="a",result="taken""#;
    assert_eq!(gateway.metric(taken).await, 1);
}
