//! How the program is linked: functions of the same machine code are kept once, and symbols are left out, so that the file
//! is smaller.

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
