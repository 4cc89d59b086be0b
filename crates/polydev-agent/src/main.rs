//! The executable; everything is in the library so that tests and fuzz targets reach it.

fn main() -> std::process::ExitCode {
    polydev_agent::main()
}
