//! Links without the C runtime, the C library and the dynamic loader.

fn main() {
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--gc-sections", "-Wl,--fatal-warnings"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    // Where the program goes, and where defmt's format strings do.
    println!("cargo::rustc-link-arg-bin=log=-T{}/log.x", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-link-arg-bin=log=-Tdefmt.x");
    println!("cargo::rerun-if-changed=log.x");
}
