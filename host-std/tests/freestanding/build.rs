//! Links without the C runtime, the C library and the dynamic loader.

fn main() {
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--gc-sections", "-Wl,--fatal-warnings"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
