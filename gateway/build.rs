//! A new migration must rebuild the program that embeds them.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
