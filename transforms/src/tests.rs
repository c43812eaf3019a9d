//! Behaviour of whole chains: fusion, purity, errors, hostile input.

mod alone;

use std::io::Cursor;
use std::path::PathBuf;

use image::{ExtendedColorType, ImageFormat};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::decode::exif;
use crate::decode::jpeg::tests::{PLAIN, Style, encode, picture};
use crate::*;

pub(crate) fn parse(transforms: Value) -> Result<Vec<TransformConfig>, String> {
    serde_json::from_value(transforms).map_err(|error| error.to_string())
}

fn chain_with(transforms: Value, output: OutputConfig) -> Chain {
    compile(&parse(transforms).unwrap(), &output, Limits::default()).unwrap()
}

pub(crate) fn u8_chain(transforms: Value) -> Chain {
    chain_with(transforms, OutputConfig { layout: Layout::Nhwc, ..OutputConfig::default() })
}

pub(crate) fn at(position: u64) -> SampleKey {
    SampleKey { seed: 3, epoch: 1, position }
}

pub(crate) fn run(
    chain: &Chain,
    bytes: &[u8],
    key: SampleKey,
    stepwise: bool,
) -> Result<Vec<u8>, SampleError> {
    let mut row = vec![0xAA; chain.output().row_bytes()];
    chain.apply_with(bytes, key, &mut Scratch::default(), &mut row, stepwise)?;
    Ok(row)
}

pub(crate) fn png(w: usize, h: usize, seed: u64) -> Vec<u8> {
    save(&picture(w, h, seed), w, h, ExtendedColorType::Rgb8, ImageFormat::Png)
}

pub(crate) fn save(
    pixels: &[u8],
    w: usize,
    h: usize,
    color: ExtendedColorType,
    format: ImageFormat,
) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image::write_buffer_with_format(&mut out, pixels, w as u32, h as u32, color, format).unwrap();
    out.into_inner()
}

/// The error of a chain that must not compile.
fn refusal(transforms: Value) -> String {
    match parse(transforms) {
        Err(error) => error,
        Ok(transforms) => {
            compile(&transforms, &OutputConfig::default(), Limits::default()).unwrap_err().to_string()
        }
    }
}

/// Any step that may stand before the normalisation, with arguments that fit small images.
pub(crate) fn any_step() -> impl Strategy<Value = Value> {
    let filter = prop_oneof![
        Just("nearest"),
        Just("bilinear"),
        Just("bicubic"),
        Just("lanczos"),
        Just("box"),
        Just("hamming")
    ];
    let side = 1u32..60;
    prop_oneof![
        4 => (side.clone(), side.clone(), filter.clone()).prop_map(|(h, w, f)| json!(
            {"type": "Resize", "size": [h, w], "interpolation": f})),
        2 => (side.clone(), filter.clone()).prop_map(|(s, f)| json!(
            {"type": "Resize", "size": s, "interpolation": f})),
        4 => (side.clone(), side.clone()).prop_map(|(h, w)| json!({"type": "CenterCrop", "size": [h, w]})),
        4 => (side.clone(), side.clone()).prop_map(|(h, w)| json!(
            {"type": "RandomCrop", "size": [h, w], "pad_if_needed": true})),
        4 => (side.clone(), side, filter).prop_map(|(h, w, f)| json!(
            {"type": "RandomResizedCrop", "size": [h, w], "interpolation": f})),
        4 => Just(json!({"type": "RandomHorizontalFlip"})),
        4 => Just(json!({"type": "RandomVerticalFlip"})),
        1 => Just(json!({"type": "RandomRotation", "degrees": 30, "interpolation": "bilinear"})),
        1 => Just(json!({"type": "RandomRotation", "degrees": 90, "expand": true, "fill": 7})),
        1 => Just(json!({"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1})),
        1 => Just(json!({"type": "RandomGrayscale", "p": 0.5})),
        1 => Just(json!({"type": "Pad", "padding": [1, 2, 3, 4], "padding_mode": "reflect"})),
        1 => Just(json!({"type": "GaussianBlur", "kernel_size": 1})),
        1 => Just(json!({"type": "GaussianNoise"})),
        1 => Just(json!({"type": "RandomErasing", "value": 9})),
        1 => (1u32..60, any::<bool>()).prop_map(|(s, scaleup)| json!(
            {"type": "Letterbox", "size": s, "scaleup": scaleup})),
        1 => Just(json!({"type": "RandomZoomOut", "side_range": [1, 2]})),
        1 => Just(json!({"type": "ScaleJitter", "target_size": 40})),
        1 => Just(json!({"type": "RandomShortestSize", "min_size": [20, 30], "max_size": 50})),
        1 => Just(json!(
            {"type": "RandomAffine", "degrees": 20, "translate": [0.1, 0.2], "scale": [0.7, 1.3], "shear": 9})),
        1 => Just(json!({"type": "RandomPerspective", "p": 0.8, "interpolation": "bicubic"})),
        1 => Just(json!({"type": "ElasticTransform", "sigma": 0})),
        6 => any_levels(),
        1 => Just(json!({"type": "RandomAdjustSharpness", "sharpness_factor": 2})),
        1 => Just(json!({"type": "RandomPhotometricDistort"})),
        2 => (0u32..4, any::<bool>()).prop_map(|(n, smooth)| json!(
            {"type": "RandAugment", "num_ops": n, "interpolation": if smooth { "bilinear" } else { "nearest" }})),
        1 => Just(json!({"type": "TrivialAugmentWide", "fill": [1, 2, 3]})),
        1 => prop_oneof![Just("rand-m9-mstd0.5-n3"), Just("v0"), Just("3a")].prop_map(|policy| json!(
            {"type": "TimmAutoAugment", "config_str": policy})),
        1 => prop_oneof![Just("imagenet"), Just("cifar10"), Just("svhn")].prop_map(|policy| json!(
            {"type": "AutoAugment", "policy": policy})),
        1 => Just(json!({"type": "RandomChannelPermutation"})),
        2 => prop::collection::vec(any_levels(), 1..4).prop_map(|steps| json!(
            {"type": "RandomApply", "p": 0.7, "transforms": [
                {"type": "RandomOrder", "transforms": steps},
                {"type": "RandomChoice", "transforms": [
                    {"type": "RandomHorizontalFlip"}, {"type": "RandomRotation", "degrees": 30}]},
            ]})),
    ]
}

/// Steps that are tables of levels, and so stay pending.
fn any_levels() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"type": "RandomEqualize", "p": 0.8})),
        Just(json!({"type": "RandomAutocontrast", "p": 0.8})),
        Just(json!({"type": "RandomPosterize", "p": 0.8, "bits": 3})),
        Just(json!({"type": "RandomSolarize", "p": 0.8, "threshold": 99.5})),
        Just(json!({"type": "RandomInvert", "p": 0.8})),
        Just(json!({"type": "ColorJitter", "brightness": [0.5, 1.5], "contrast": [0.5, 1.5]})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn a_fused_plan_gives_the_bytes_of_its_steps_done_one_by_one(
        w in 1usize..90, h in 1usize..90, steps in prop::collection::vec(any_step(), 0..6), last in 1u32..40,
        position: u64, jpeg: bool, progressive: bool, orientation in 1u16..=8,
    ) {
        let mut steps = steps;
        steps.push(json!({"type": "CenterCrop", "size": last}));
        let bytes = if jpeg {
            oriented(encode(w, h, position, Style { progressive, ..PLAIN }), orientation)
        } else {
            png(w, h, position)
        };
        let chain = u8_chain(Value::Array(steps));
        prop_assert!(run(&chain, &bytes, at(position), false) == run(&chain, &bytes, at(position), true));
    }

    #[test]
    fn damaged_files_give_a_row_or_an_error(
        kind in 0usize..6, cuts in prop::collection::vec((any::<u32>(), any::<u8>()), 1..8), keep: u32,
    ) {
        let mut bytes = small_files()[kind].clone();
        for (place, value) in cuts {
            let place = place as usize % bytes.len();
            bytes[place] = value;
        }
        if keep % 3 == 0 {
            bytes.truncate(keep as usize % bytes.len());
        }
        let chain = u8_chain(json!([{"type": "RandomResizedCrop", "size": 16}, {"type": "RandomHorizontalFlip"}]));
        let limits = Limits { max_sample_bytes: 16 << 20, ..Limits::default() };
        let chain = Chain { limits, ..chain };
        let _ = run(&chain, &bytes, at(u64::from(keep)), false);
    }
}

fn small_files() -> Vec<Vec<u8>> {
    let pixels = picture(24, 20, 1);
    let saved = |format| save(&pixels, 24, 20, ExtendedColorType::Rgb8, format);
    vec![
        encode(24, 20, 1, PLAIN),
        encode(24, 20, 1, Style { progressive: true, ..PLAIN }),
        saved(ImageFormat::Png),
        saved(ImageFormat::Bmp),
        alone::tiff(&pixels, 24, 20),
        saved(ImageFormat::WebP),
    ]
}

/// `jpeg` with an EXIF segment behind its first marker.
pub(crate) fn oriented(jpeg: Vec<u8>, orientation: u16) -> Vec<u8> {
    let mut out = jpeg[..2].to_vec();
    out.extend(exif::tests::segment(orientation, orientation.is_multiple_of(2)));
    out.extend(&jpeg[2..]);
    out
}

#[test]
fn every_orientation_comes_out_upright() {
    let (w, h) = (40, 24);
    let jpeg = encode(w, h, 2, PLAIN);
    let stored =
        run(&u8_chain(json!([{"type": "CenterCrop", "size": [h, w]}])), &jpeg, at(0), false).unwrap();
    let stored = |x: usize, y: usize| &stored[(y * w + x) * 3..][..3];
    for orientation in 1..=8u16 {
        let (up_w, up_h) = if orientation < 5 { (w, h) } else { (h, w) };
        let chain = u8_chain(json!([{"type": "CenterCrop", "size": [up_h, up_w]}]));
        let row = run(&chain, &oriented(jpeg.clone(), orientation), at(0), false).unwrap();
        for y in 0..up_h {
            for x in 0..up_w {
                // Where the EXIF standard's table says that this pixel is stored.
                let (sx, sy) = match orientation {
                    1 => (x, y),
                    2 => (w - 1 - x, y),
                    3 => (w - 1 - x, h - 1 - y),
                    4 => (x, h - 1 - y),
                    5 => (y, x),
                    6 => (y, h - 1 - x),
                    7 => (w - 1 - y, h - 1 - x),
                    _ => (w - 1 - y, x),
                };
                assert_eq!(
                    &row[(y * up_w + x) * 3..][..3],
                    stored(sx, sy),
                    "orientation {orientation} at {x}, {y}"
                );
            }
        }
    }
}

#[test]
fn a_row_depends_on_its_key_and_not_on_what_was_done_before() {
    let chain = u8_chain(json!([
        {"type": "RandomResizedCrop", "size": 16},
        {"type": "RandomHorizontalFlip"},
        {"type": "ColorJitter", "brightness": 0.4, "hue": 0.2},
        {"type": "GaussianNoise"},
    ]));
    let files = small_files();
    let mut scratch = Scratch::default();
    let mut reused = Vec::new();
    for turn in 0..3 {
        for (i, bytes) in
            files.iter().enumerate().map(|(i, b)| if turn == 1 { (5 - i, &files[5 - i]) } else { (i, b) })
        {
            let mut row = vec![turn; chain.output().row_bytes()];
            chain.apply(bytes, at(i as u64), &mut scratch, &mut row).unwrap();
            assert_eq!(row, run(&chain, bytes, at(i as u64), false).unwrap());
            reused.push(row);
        }
    }
    let first = run(&chain, &files[0], at(0), false).unwrap();
    for other in
        [SampleKey { seed: 4, ..at(0) }, SampleKey { epoch: 2, ..at(0) }, SampleKey { position: 9, ..at(0) }]
    {
        assert_ne!(first, run(&chain, &files[0], other, false).unwrap());
    }
}

#[test]
fn random_resized_crops_have_the_areas_and_aspects_asked_for() {
    let (mut areas, mut wide, count) = (0.0, 0, 20_000);
    for position in 0..count {
        let mut draws = random::Draws::new(at(position), 0);
        let rect = steps::resized_crop((1000, 1000), [0.08, 0.5], [0.75, 4.0 / 3.0], &mut draws);
        assert!(rect.x + rect.w <= 1000 && rect.y + rect.h <= 1000);
        let area = (rect.w * rect.h) as f64 / 1e6;
        let aspect = rect.w as f64 / rect.h as f64;
        assert!((0.0795..=0.5005).contains(&area), "{area}");
        assert!((0.745..=1.34).contains(&aspect), "{aspect}");
        areas += area;
        wide += u32::from(aspect > 1.0);
    }
    let mean = areas / count as f64;
    assert!((mean - 0.29).abs() < 0.003, "uniform between 0.08 and 0.5, not of mean {mean}");
    let share = f64::from(wide) / count as f64;
    assert!((share - 0.5).abs() < 0.02, "the aspect is uniform in its logarithm, yet {share} are wide");
}

#[test]
fn where_no_crop_fits_the_largest_centred_one_of_an_allowed_aspect_is_taken() {
    let mut draws = random::Draws::new(at(0), 0);
    let rect = steps::resized_crop((10, 1000), [0.9, 1.0], [0.75, 4.0 / 3.0], &mut draws);
    assert_eq!(rect, geometry::Rect { x: 0, y: 493, w: 10, h: 13 });
}

#[test]
fn alpha_is_dropped_and_the_high_byte_taken_and_gray_and_one_bit_become_rgb() {
    let chain = u8_chain(json!([{"type": "CenterCrop", "size": [1, 2]}]));
    let pixel = |pixels: &[u8], color| {
        let bytes = save(pixels, 2, 1, color, ImageFormat::Png);
        run(&chain, &bytes, at(0), false).unwrap()
    };
    assert_eq!(pixel(&[1, 2, 3, 0, 4, 5, 6, 255], ExtendedColorType::Rgba8), [1, 2, 3, 4, 5, 6]);
    assert_eq!(pixel(&[9, 0, 8, 255], ExtendedColorType::La8), [9, 9, 9, 8, 8, 8]);
    assert_eq!(pixel(&[9, 8], ExtendedColorType::L8), [9, 9, 9, 8, 8, 8]);
    let wide: Vec<u8> = [0x12FFu16, 0xFF00].iter().flat_map(|v| v.to_ne_bytes()).collect();
    assert_eq!(pixel(&wide, ExtendedColorType::L16), [0x12, 0x12, 0x12, 0xFF, 0xFF, 0xFF]);
    let pbm = run(&chain, b"P4 2 1\n\x40", at(0), false).unwrap();
    assert_eq!(pbm, [255, 255, 255, 0, 0, 0]);
}

#[test]
fn floats_without_normalize_are_between_0_and_1_and_erasing_follows_normalize() {
    let white = save(&[255; 12], 2, 2, ExtendedColorType::Rgb8, ImageFormat::Png);
    let floats =
        |row: Vec<u8>| row.as_chunks::<4>().0.iter().map(|v| f32::from_ne_bytes(*v)).collect::<Vec<_>>();
    let unit = OutputConfig { dtype: Some(Dtype::F32), ..OutputConfig::default() };
    let crop = json!({"type": "CenterCrop", "size": 2});
    let chain = chain_with(json!([crop]), unit.clone());
    assert_eq!(floats(run(&chain, &white, at(0), false).unwrap()), [1.0; 12]);
    let erase =
        json!({"type": "RandomErasing", "p": 1, "scale": [0.2, 0.3], "ratio": [1, 1], "value": [7, 8, 9]});
    let chain = chain_with(json!([crop, {"type": "Normalize", "mean": [0.5], "std": [0.5]}, erase]), unit);
    let row = floats(run(&chain, &white, at(0), false).unwrap());
    for (plane, value) in row.chunks(4).zip([7.0, 8.0, 9.0]) {
        assert_eq!(plane.iter().filter(|v| **v == value).count(), 1, "one pixel of four: {row:?}");
        assert_eq!(plane.iter().filter(|v| **v == 1.0).count(), 3, "{row:?}");
    }
}

#[test]
fn bytes_that_are_no_image_are_told_apart() {
    let chain = u8_chain(json!([{"type": "CenterCrop", "size": 4}]));
    let error = |bytes: &[u8]| run(&chain, bytes, at(0), false).unwrap_err();
    assert_eq!(error(b"").to_string(), "malformed: empty file");
    let text = error(b"hello, I am a text file").to_string();
    assert_eq!(text, "malformed: not an image format fuelrail knows (starts with \"hello, I am \")");
    let huge = error(b"P6 60000 60000 255 ");
    assert_eq!(huge.kind(), SampleErrorKind::TooLarge, "{huge}");
    let chain = u8_chain(json!([{"type": "RandomCrop", "size": 64}]));
    let small = run(&chain, &png(20, 10, 0), at(0), false).unwrap_err();
    assert_eq!(small.kind(), SampleErrorKind::Unsupported);
    assert!(small.to_string().contains("20 x 10") && small.to_string().contains("pad_if_needed"), "{small}");
}

/// Each of these chains is refused, with these words.
fn refused(cases: &[(Value, &[&str])]) {
    for (transforms, words) in cases {
        let error = refusal(transforms.clone());
        for word in *words {
            assert!(error.contains(word), "{transforms}\nsays: {error}\nbut not: {word}");
        }
    }
}

#[test]
fn a_refused_configuration_says_where_what_and_what_to_do() {
    let crop = json!({"type": "CenterCrop", "size": 8});
    let normalize = json!({"type": "Normalize", "mean": [0.5], "std": [0.5]});
    refused(&[
        (json!([{"type": "Resise", "size": 8}]), &["Resise", "Resize", "RandomErasing"]),
        (json!([{"size": 8}]), &["type"]),
        (json!([{"type": "CenterCrop", "sise": 8}]), &["sise", "size"]),
        (json!([{"type": "RandomHorizontalFlip", "prob": 1}]), &["prob", "`p`"]),
        (json!([{"type": "CenterCrop", "size": "big"}]), &["whole number or [height, width]"]),
        (json!([{"type": "CenterCrop", "size": [1, 2, 3]}]), &["3", "[height, width]"]),
        (json!([{"type": "CenterCrop", "size": 2.5}]), &["2.5"]),
        (json!([{"type": "Resize", "size": 8, "interpolation": "cubic"}]), &["cubic", "bicubic"]),
        (
            json!([crop, {"type": "RandomVerticalFlip", "p": 1.5}]),
            &["transforms[1]", "RandomVerticalFlip", "1.5"],
        ),
        (json!([{"type": "CenterCrop", "size": 0}]), &["transforms[0] CenterCrop", "size", "0"]),
        (
            json!([{"type": "Resize", "size": 8}]),
            &["no fixed output size", "transforms[0] Resize(8)", "CenterCrop"],
        ),
        (json!([]), &["no fixed output size", "RandomResizedCrop"]),
        (
            json!([crop, {"type": "RandomRotation", "degrees": 9, "expand": true}]),
            &["transforms[1] RandomRotation"],
        ),
        (
            json!([crop, normalize, {"type": "RandomHorizontalFlip"}]),
            &["transforms[2]", "Normalize", "before Normalize"],
        ),
        (json!([crop, normalize, normalize]), &["transforms[2] Normalize", "merge"]),
        (json!([crop, {"type": "Normalize", "mean": [0.5], "std": [0]}]), &["std", "above 0"]),
        (
            json!([crop, {"type": "Normalize", "mean": [1, 2], "std": [1]}]),
            &["mean", "2 numbers", "3 channels"],
        ),
        (
            json!([crop, {"type": "Grayscale"}, {"type": "Pad", "padding": 1, "fill": [1, 2, 3]}]),
            &["fill", "1 channel"],
        ),
        (json!([crop, {"type": "ColorJitter", "hue": 0.6}]), &["hue", "-0.5"]),
        (json!([crop, {"type": "GaussianBlur", "kernel_size": 4}]), &["kernel_size", "odd"]),
        (json!([crop, {"type": "GaussianBlur", "kernel_size": 17}]), &["kernel_size", "8 x 8"]),
        (json!([crop, {"type": "GaussianNoise", "clip": false}]), &["clip", "u8"]),
        (json!([crop, {"type": "RandomErasing", "value": "random"}]), &["random", "Normalize"]),
        (json!([crop, {"type": "RandomErasing", "value": "zero"}]), &["zero", "random"]),
        (json!([{"type": "RandomResizedCrop", "size": 8, "scale": [1, 0.5]}]), &["scale", "[1, 0.5]"]),
        (json!([{"type": "RandomResizedCrop", "size": 8, "ratio": [0, 1]}]), &["ratio", "above 0"]),
        (
            json!([{"type": "Resize", "size": [8, 8], "interpolation": "box", "antialias": false}]),
            &["antialias"],
        ),
        (json!([{"type": "Resize", "size": 8, "max_size": 8}, crop]), &["max_size", "greater"]),
        (json!([{"type": "CenterCrop", "size": [65000, 65000]}]), &["65000 x 65000", "limit"]),
    ]);
    let output = OutputConfig { dtype: Some(Dtype::U8), ..OutputConfig::default() };
    let transforms = parse(json!([crop, normalize])).unwrap();
    let error = compile(&transforms, &output, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("u8") && error.contains("f32"), "{error}");
}

#[test]
fn steps_made_of_steps_and_warps_are_refused_with_where_what_and_what_to_do() {
    let crop = json!({"type": "CenterCrop", "size": 8});
    let flip = json!({"type": "RandomHorizontalFlip"});
    let normalize = json!({"type": "Normalize", "mean": [0.5], "std": [0.5]});
    refused(&[
        (
            json!([crop, {"type": "RandomApply", "transforms": [
                flip, {"type": "RandomSolarize", "threshold": 9, "p": 3}]}]),
            &["transforms[1] RandomApply: transforms[1] RandomSolarize: p", "3"],
        ),
        (
            json!([crop, {"type": "RandomApply", "transforms": [normalize]}]),
            &["transforms[1]", "Normalize", "move it"],
        ),
        (
            json!([crop, normalize, {"type": "RandomApply", "transforms": [flip]}]),
            &["transforms[2] RandomApply", "before Normalize"],
        ),
        (json!([crop, {"type": "RandomApply", "transforms": []}]), &["transforms is empty"]),
        (
            json!([crop, {"type": "RandomApply", "transforms": [{"type": "Grayscale"}]}]),
            &["1 channel", "Grayscale(3)"],
        ),
        (
            json!([crop, {"type": "RandomApply", "transforms": [{"type": "Resize", "size": [9, 9]}]}]),
            &["no fixed output size", "transforms[1] RandomApply does not give all images the same size"],
        ),
        (
            json!([crop, {"type": "RandomChoice", "transforms": [flip, {"type": "Resize", "size": 9}]}]),
            &["no fixed output size", "RandomChoice"],
        ),
        (
            json!([crop, {"type": "RandomOrder", "transforms": [
                {"type": "Pad", "padding": 1}, {"type": "Resize", "size": 9}]}]),
            &["no fixed output size", "random order"],
        ),
        (
            json!([crop, {"type": "RandomOrder", "transforms": [{"type": "Grayscale"}, flip]}]),
            &["Grayscale(3)"],
        ),
        (
            json!([crop, {"type": "RandomChoice", "transforms": [flip, flip], "p": [1]}]),
            &["p has 1", "2 transforms"],
        ),
        (json!([crop, {"type": "RandomChoice", "transforms": [flip], "p": [-1]}]), &["0 or more", "-1"]),
        (json!([crop, {"type": "RandomChoice", "transforms": [flip], "p": [0]}]), &["p is 0 for all"]),
        (json!([crop, {"type": "RandomAffine", "degrees": -1}]), &["degrees", "-1"]),
        (json!([crop, {"type": "RandomAffine", "degrees": 0, "translate": [2, 0]}]), &["translate", "2.0"]),
        (json!([crop, {"type": "RandomAffine", "degrees": 0, "scale": [0, 1]}]), &["scale", "above 0"]),
        (
            json!([crop, {"type": "RandomAffine", "degrees": 0, "shear": [1, 2, 3]}]),
            &["shear", "[least, most]"],
        ),
        (
            json!([crop, {"type": "RandomAffine", "degrees": 0, "interpolation": "lanczos"}]),
            &["nearest, bilinear or bicubic"],
        ),
        (json!([crop, {"type": "RandomPerspective", "distortion_scale": 1.5}]), &["distortion_scale", "1.5"]),
        (json!([crop, {"type": "ElasticTransform", "sigma": [0, 5]}]), &["sigma", "both"]),
        (json!([crop, {"type": "ElasticTransform", "interpolation": "bicubic"}]), &["nearest or bilinear"]),
        (json!([crop, {"type": "RandomPosterize", "bits": 9}]), &["bits", "9"]),
        (
            json!([crop, {"type": "RandomAdjustSharpness", "sharpness_factor": -1}]),
            &["sharpness_factor", "-1"],
        ),
        (json!([crop, {"type": "RandomPhotometricDistort", "hue": [-1, 0]}]), &["hue", "-0.5"]),
        (json!([crop, {"type": "TimmRandomErasing"}]), &["after Normalize", "RandomErasing"]),
        (
            json!([crop, normalize, {"type": "TimmRandomErasing", "min_count": 3, "max_count": 2}]),
            &["min_count and max_count", "3 and 2"],
        ),
        (
            json!([crop, normalize, {"type": "TimmRandomErasing", "mode": "noise"}]),
            &["noise", "const", "pixel"],
        ),
        (json!([crop, normalize, {"type": "TimmRandomErasing", "min_area": 0.5}]), &["[min_area, max_area]"]),
        (json!([crop, {"type": "RandAugment", "num_ops": 1001}]), &["num_ops", "1001"]),
        (json!([crop, {"type": "RandAugment", "magnitude": 31}]), &["magnitude", "31"]),
        (json!([crop, {"type": "AutoAugment", "policy": "coco"}]), &["coco", "imagenet", "cifar10", "svhn"]),
        (json!([crop, {"type": "AugMix", "severity": 0}]), &["severity", "between 1 and 10"]),
    ]);
}

#[test]
fn every_transform_has_torchvisions_defaults_and_survives_a_round_trip() {
    for name in TRANSFORM_NAMES {
        let needed = match *name {
            "Resize" | "RandomResizedCrop" | "Letterbox" => json!({"size": 8}),
            "CenterCrop" => json!({"size": [8]}),
            "RandomCrop" => json!({"size": [8, 9]}),
            "ScaleJitter" => json!({"target_size": [8, 9]}),
            "RandomShortestSize" => json!({"min_size": [8, 9]}),
            "RandomRotation" => json!({"degrees": 10}),
            "RandomAffine" => {
                json!({"degrees": [-3, 10], "translate": [0.1, 0], "shear": [1, 2, 3, 4], "center": [0, 1]})
            }
            "ElasticTransform" => json!({"alpha": [1, 2]}),
            "RandomSolarize" => json!({"threshold": 128}),
            "RandomPosterize" => json!({"bits": 4}),
            "RandomAdjustSharpness" => json!({"sharpness_factor": 2}),
            "RandomApply" => {
                json!({"transforms": [{"type": "RandomApply", "transforms": [{"type": "Resize", "size": 9}]}]})
            }
            "RandomChoice" => {
                json!({"transforms": [{"type": "RandomInvert"}, {"type": "RandomEqualize"}], "p": [0.1, 0.9]})
            }
            "TimmAutoAugment" => json!({"config_str": "rand-m9"}),
            "RandomOrder" => json!({"transforms": [{"type": "RandomInvert"}]}),
            "GaussianBlur" => json!({"kernel_size": [3, 5]}),
            "Pad" => json!({"padding": [1, 2]}),
            "Normalize" => json!({"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3]}),
            _ => json!({}),
        };
        let mut entry = needed.clone();
        entry["type"] = json!(name);
        let transform: TransformConfig = serde_json::from_value(entry).unwrap();
        assert_eq!(&transform.name(), name);
        let written = serde_json::to_value(&transform).unwrap();
        assert_eq!(written["type"], json!(name));
        assert_eq!(serde_json::from_value::<TransformConfig>(written).unwrap(), transform);
    }
    let defaults = serde_json::to_value(parse(json!([{"type": "RandomErasing"}])).unwrap()).unwrap();
    let expected = json!([{"type": "RandomErasing", "p": 0.5, "scale": [0.02, 0.33], "ratio": [0.3, 3.3], "value": 0.0}]);
    assert_eq!(defaults, expected);
}

#[test]
fn the_size_after_steps_made_of_steps_is_known_where_it_is_the_same_for_all_images() {
    let crop = json!({"type": "CenterCrop", "size": 40});
    let pad = json!({"type": "RandomCrop", "size": 32, "padding": 4});
    let flip = json!({"type": "RandomHorizontalFlip"});
    for step in [
        json!({"type": "RandomApply", "p": 1, "transforms": [pad]}),
        json!({"type": "RandomOrder", "transforms": [pad, flip]}),
        json!({"type": "RandomChoice", "transforms": [pad, {"type": "Resize", "size": [32, 32]}]}),
        json!({"type": "RandomChoice", "transforms": [pad, flip], "p": [1, 0]}),
        json!({"type": "RandomOrder", "transforms": [{"type": "RandomOrder", "transforms": [flip, pad]}, flip]}),
    ] {
        let chain = u8_chain(json!([crop, step]));
        assert_eq!((chain.output().width, chain.output().height), (32, 32), "{step}");
        assert!(run(&chain, &png(50, 45, 1), at(0), false).is_ok(), "{step}");
    }
    let gray =
        u8_chain(json!([crop, {"type": "RandomApply", "p": 1, "transforms": [{"type": "Grayscale"}]}]));
    assert_eq!(gray.output().channels, 1);
    let never = u8_chain(json!([crop, {"type": "RandomApply", "p": 0, "transforms": [pad]}]));
    assert_eq!(never.output().width, 40);
}

#[test]
fn mixtures_leave_nothing_behind_for_the_next_step_or_record() {
    // What is pending before a mixture (a crop, a flip, a table) and after it is carried out as if one by one.
    let chains = ["AugMix", "TimmAutoAugment"].map(|name| {
        let mut mixture = json!({"type": name});
        if name == "TimmAutoAugment" {
            mixture["config_str"] = json!("augmix-m5-w2");
        }
        u8_chain(json!([
            {"type": "RandomCrop", "size": 30}, {"type": "RandomHorizontalFlip"}, {"type": "RandomInvert"}, mixture,
            {"type": "RandomSolarize", "threshold": 99}, {"type": "RandomVerticalFlip"},
            {"type": "RandomCrop", "size": 20}]))
    });
    let image = png(50, 40, 1);
    let mut scratch = Scratch::default();
    for position in 0..40 {
        let rows = chains.each_ref().map(|chain| {
            let mut row = vec![0; chain.output().row_bytes()];
            chain.apply(&image, at(position), &mut scratch, &mut row).unwrap();
            assert_eq!(row, run(chain, &image, at(position), true).unwrap(), "{position}");
            row
        });
        assert_ne!(rows[0], rows[1]);
    }
}

#[test]
fn a_step_draws_the_same_whatever_else_is_in_its_list() {
    let image = png(60, 60, 1);
    let affine = json!({"type": "RandomAffine", "degrees": 30, "translate": [0.2, 0.2]});
    let row = |others: Value| {
        let mut steps = others.as_array().unwrap().clone();
        steps.insert(1, affine.clone());
        let chain = u8_chain(
            json!([{"type": "CenterCrop", "size": 60}, {"type": "RandomApply", "p": 1, "transforms": steps}]),
        );
        (0..20).map(|position| run(&chain, &image, at(position), false).unwrap()).collect::<Vec<_>>()
    };
    let never = |p: f64| {
        json!({"type": "RandomChoice", "transforms": [
        {"type": "RandomHorizontalFlip", "p": 0}, {"type": "RandomRotation", "degrees": [0, 0]}], "p": [p, 1.0 - p]})
    };
    let first = row(json!([{"type": "RandomHorizontalFlip", "p": 0}]));
    assert_eq!(first, row(json!([{"type": "RandomInvert", "p": 0}, {"type": "ColorJitter"}])));
    assert_eq!(first, row(json!([never(0.3), never(0.6)])));
    assert!(first.windows(2).any(|pair| pair[0] != pair[1]));
}

/// The test data folder, or `None` (with a line that says so) where it is not there.
fn test_data(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("FUELRAIL_TEST_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let folder = root.join(folder);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no test data at {} (set FUELRAIL_TEST_DATA)", folder.display());
    None
}

#[test]
fn a_corpus_of_malformed_files_gives_rows_or_errors_alike_for_every_crop() {
    let Some(folder) = test_data("malformed") else { return };
    let chain =
        u8_chain(json!([{"type": "RandomResizedCrop", "size": 32}, {"type": "RandomHorizontalFlip"}]));
    // Small enough that a test machine survives a file that slips through.
    let chain = Chain { limits: Limits { max_sample_bytes: 64 << 20, ..Limits::default() }, ..chain };
    let mut scratch = Scratch::default();
    let mut row = vec![0; chain.output().row_bytes()];
    let (mut rows, mut refused, mut folders) = (0, 0, vec![folder]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let bytes = std::fs::read(entry.path()).unwrap();
            let verdicts = [0, 1, 2].map(|position| {
                chain.apply(&bytes, at(position), &mut scratch, &mut row).map_err(|error| error.to_string())
            });
            assert!(
                verdicts.iter().all(|verdict| *verdict == verdicts[0]),
                "{}: the verdict depends on the crop: {verdicts:?}",
                entry.path().display()
            );
            match &verdicts[0] {
                Ok(()) => rows += 1,
                Err(message) => {
                    assert!(!message.is_empty());
                    refused += 1;
                }
            }
        }
    }
    assert!(rows > 100 && refused > 100, "{rows} rows, {refused} refused");
}
