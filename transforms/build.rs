//! Compiles the C shim of `decode/jpeg.rs` against the headers of the libjpeg-turbo that `turbojpeg-sys` has built.
//!
//! The shim exists because libjpeg reports errors by `longjmp`, which must never cross a Rust frame, and because
//! its structs are C's to lay out. `setjmp` and every jpeglib struct therefore stay in C.

fn main() {
    println!("cargo:rerun-if-changed=src/decode/jpeg_shim.c");
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_else(|_| {
        panic!(
            "turbojpeg-sys did not say where jpeglib.h is: build with its bundled libjpeg-turbo \
             (unset TURBOJPEG_SOURCE), which needs cmake and nasm"
        )
    });
    let mut build = cc::Build::new();
    for path in include.split(',') {
        build.include(path);
    }
    // gcc warns of every parameter that changes after setjmp; none is read after a longjmp.
    build.flag_if_supported("-Wno-clobbered");
    build
        .file("src/decode/jpeg_shim.c")
        .std("c11")
        .warnings(true)
        .extra_warnings(true)
        .compile("fuelrail_jpeg_shim");
}
