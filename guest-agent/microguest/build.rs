//! Hands the payload's linker scripts to the linker, for its bare-metal target only.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
        println!("cargo:rustc-link-arg-bins=-T{folder}/link.ld");
        // Written by defmt's own build script, found through its link search path.
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
    }
}
