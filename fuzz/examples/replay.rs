//! Runs a target over one input, with the stable toolchain: `cargo run --example replay TARGET FILE`. The program that the
//! input encodes is printed first.

use disk_fuzz::targets::ALL;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(file)) = (arguments.next(), arguments.next()) else {
        panic!("usage: replay TARGET FILE");
    };
    let input = std::fs::read(file)?;
    let target = ALL.iter().find(|target| target.name == name).expect("a target");
    disk_fuzz::program::print_programs();
    (target.run)(&input);
    Ok(())
}
