//! Links the program so that its file is small: functions with the same machine code are merged, and symbols are left out.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let linker_is_lld = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    if target == "linux" && linker_is_lld {
        for argument in ["--icf=all", "--strip-all"] {
            println!("cargo:rustc-link-arg-bins=-Wl,{argument}");
        }
    }
}
