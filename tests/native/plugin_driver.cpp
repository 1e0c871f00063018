// Tests the plugin's parts and callbacks without TensorRT and without a GPU, for the sanitizers, which cannot run Python.
//
//   plugin_driver            with cuda_driver_double.cpp as libcuda.so.1; exit code 1 if something is wrong
//   plugin_driver no-driver  if there is no libcuda.so.1
#include "plugin_driver.hpp"

#include <dlfcn.h>

#include <random>
#include <stdexcept>

#include "archive_for_tests.hpp"
#include "cuda_driver_double.hpp"
#include "launcher.hpp"
#include "linear_launcher.hpp"

namespace {

using namespace echovlm;

int failures = 0;

}  // namespace

void expect(bool holds, const char* what, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d: %s\n", line, what);
  ++failures;
}

CudaDriverDouble& driver_double() {
  static auto* const get = reinterpret_cast<CudaDriverDouble* (*)()>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuda_driver_double"));
  return *get();
}

namespace {

const Attributes kPublished{{18944, 5632, 1408, 1408, 1408, 1408}, 2, 0, 4, 128};
const Attributes kSmall{{384, 256, 128, 128, 128, 128}, 2, 1, 4, 64};
constexpr std::int64_t kSmallHidden = 192;

std::vector<std::uint8_t> archive_of(std::uint32_t sm) { return archive_for_tests(records_for_tests(sm)); }

void attributes_are_checked() {
  kPublished.validate();
  const auto refused = [](auto change, const char* words) {
    Attributes attributes = kSmall;
    change(attributes);
    EXPECT_REFUSED(attributes.validate(), words);
  };
  refused([](Attributes& a) { a.group_widths = {64, 64}; }, "group_widths has 2 entries");
  refused([](Attributes& a) { a.group_widths[1] = 100; }, "group width 100 is not a multiple of block_size 64");
  refused([](Attributes& a) { a.group_widths[0] = 0; }, "group width 0");
  refused([](Attributes& a) { a.group_widths[4] = 192; }, "experts of widths 128 and 192");
  refused([](Attributes& a) { a.group_widths.assign(67, 64); }, "65 experts");
  refused([](Attributes& a) { a.top_k = 5; }, "top_k 5 is not between 1 and the 4 experts");
  refused([](Attributes& a) { a.top_k = 0; }, "top_k 0");
  refused([](Attributes& a) { a.norm_topk_prob = 2; }, "norm_topk_prob 2");
  refused([](Attributes& a) { a.bits = 8; }, "bits 8 is neither 0 nor 4");
  refused([](Attributes& a) { a.block_size = 32; }, "block_size 32 is neither 64 nor 128");
  refused([](Attributes& a) { a.bits = 0; }, "block_size 64 must be 0");
}

// Every program of the grids, once: a row, an output or a token that is missed or visited twice shows.
void planned_grids_cover_everything_once() {
  std::mt19937 random(1);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<std::int64_t>(low, high)(random); };
  for (int round = 0; round < 300; ++round) {
    const MoeShape shape{64 * pick(1, 60), 64 * pick(1, 300), 64 * pick(1, 90), 64 * pick(1, 22), pick(1, 64)};
    const std::int64_t tokens = pick(1, round % 2 == 0 ? 3000 : 200), few = pick(1, kDecodeTokens), sms = pick(1, 200);
    const Tiles tiles{32 * pick(1, 2), 32 * pick(1, 2), 64 * pick(1, 2), 1024};
    const auto rows = [&](std::int64_t width) { return (width + tiles.gate_up_rows - 1) / tiles.gate_up_rows; };
    const std::int64_t all_rows = rows(shape.dense) + rows(shape.shared) + shape.experts * rows(shape.expert);
    const std::int64_t outputs = (shape.hidden + tiles.down_rows - 1) / tiles.down_rows;

    const LaunchPlan decode = plan_decode(shape, few, tiles, sms);
    EXPECT(decode.launches.size() == 4 && decode.launches[0].grid_x == few);
    EXPECT(decode.launches[1].grid_x == all_rows && decode.launches[1].grid_y == 1);
    EXPECT(decode.launches[2].grid_x == outputs && decode.launches[2].grid_y == decode.splits);
    EXPECT(decode.splits == 8 || decode.splits * outputs >= 4 * sms);
    EXPECT(decode.splits == 1 || decode.splits / 2 * outputs < 4 * sms);
    const std::int64_t elements = few * shape.hidden;
    EXPECT((decode.launches[3].grid_x - 1) * tiles.elements < elements && decode.launches[3].grid_x * tiles.elements >= elements);

    const LaunchPlan prefill = plan_prefill(shape, tokens, tiles, sms);
    EXPECT(prefill.launches.size() == (prefill.splits > 1 ? 5 : 4) && prefill.launches[0].grid_x == tokens);
    EXPECT(prefill.splits == (tokens <= kSplitTokens ? decode.splits : 1));
    EXPECT(prefill.launches[1].grid_x == shape.experts);
    for (const std::int64_t token_tiles : {std::int64_t{prefill.launches[2].grid_x}, prefill.launches[3].grid_x / prefill.splits})
      EXPECT((token_tiles - 1) * tiles.tokens < tokens && token_tiles * tiles.tokens >= tokens);
    EXPECT(prefill.launches[3].grid_x % prefill.splits == 0);
    EXPECT(prefill.launches[2].grid_y == all_rows && prefill.launches[3].grid_y == outputs);

    const auto apart = [](std::size_t first, std::int64_t bytes, std::size_t next) {
      return first % 256 == 0 && first + static_cast<std::size_t>(bytes) <= next;
    };
    const WorkspaceLayout& d = decode.workspace;
    EXPECT(apart(d.group_weights, 4 * few * shape.groups(), d.inner) && apart(d.inner, 2 * few * shape.total_width(), d.parts));
    EXPECT(apart(d.parts, 4 * decode.splits * elements, d.bytes));
    const WorkspaceLayout& p = prefill.workspace;
    const std::size_t behind = prefill.splits > 1 ? p.parts : p.expert_tokens;
    EXPECT(apart(p.inner, 2 * tokens * shape.total_width(), behind));
    if (prefill.splits > 1) EXPECT(apart(p.parts, 4 * prefill.splits * tokens * shape.hidden, p.expert_tokens));
    EXPECT(apart(p.expert_tokens, 4 * shape.experts * tokens, p.expert_counts) && apart(p.expert_counts, 4 * shape.experts, p.bytes));

    const std::size_t most = largest_workspace(shape, tokens);  // sized once, for fewer tokens too
    for (const std::int64_t n : {tokens, pick(1, static_cast<int>(tokens))}) {
      EXPECT(plan_prefill(shape, n, tiles, sms).workspace.bytes <= most);
      if (n <= kDecodeTokens) EXPECT(plan_decode(shape, n, tiles, sms).workspace.bytes <= most);
    }
  }
}

void archives_are_read() {
  const std::vector<std::uint8_t> bytes = archive_of(86);
  const Archive archive(bytes.data(), bytes.size());
  const Variant int4{kFloat16, 4, 128, 4};
  const KernelRecord* found = archive.find("gate_up_prefill", 86, int4, 128);
  EXPECT(found && found->block_size == 128 && found->tile_tokens == 128 && found->activation == kFloat16);
  EXPECT(found && reinterpret_cast<const char*>(found->cubin) == found->entry);
  EXPECT(archive.find("route", 86, int4)->experts_limit == 8);
  EXPECT(archive.find("route", 86, {kBFloat16, 4, 128, 9})->experts_limit == 64);
  EXPECT(archive.find("route", 89, int4) && !archive.find("route", 80, int4) && !archive.find("route", 90, int4));
  EXPECT(!archive.find("gate_up_decode", 86, {kFloat16, 8, 128, 4}) && !archive.find("absent", 86, int4));
  EXPECT((archive.prefill_tiles(int4) == std::vector<std::uint32_t>{64, 128}));
  EXPECT(archive.prefill_tiles(int4, 89).size() == 2 && archive.prefill_tiles(int4, 90).empty());

  const std::vector<std::uint8_t> exact = archive_of(120);
  EXPECT(!Archive(exact.data(), exact.size()).find("route", 121, int4));  // from 9.0 on only the exact architecture
}

void damaged_archives_are_refused() {
  const std::vector<std::uint8_t> whole = archive_of(80);
  for (std::size_t length = 0; length < whole.size(); length += 61) {
    const std::vector<std::uint8_t> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    EXPECT_REFUSED(Archive(cut.data(), cut.size()), "The archive of CUDA kernels");
  }
  const auto changed = [&](std::size_t at, std::uint8_t value, const char* words) {
    std::vector<std::uint8_t> bytes = whole;
    bytes[at] = value;
    EXPECT_REFUSED(Archive(bytes.data(), bytes.size()), words);
  };
  changed(0, 'X', "is not one");
  changed(8, 2, "has version 2");
  changed(13, 0xFF, "records lie outside");
  changed(64 + 150, 0xFF, "sort lies outside");
  std::vector<std::uint8_t> around = whole;  // offset and size whose sum wraps to a small number
  std::memset(&around[64 + 145], 0xFF, 7);
  EXPECT_REFUSED(Archive(around.data(), around.size()), "sort lies outside");
  std::mt19937 random(2);
  for (int round = 0; round < 2000; ++round) {  // for any bytes, nothing outside of them may be read
    std::vector<std::uint8_t> bytes = whole;
    for (int i = 0; i < 4; ++i) bytes[random() % (64 + 20 * 192)] = static_cast<std::uint8_t>(random());
    try {
      const Archive archive(bytes.data(), bytes.size());
      unsigned sum = 0;
      for (const KernelRecord& record : archive.records()) sum += record.cubin[0] + record.cubin[record.cubin_bytes - 1];
      EXPECT(sum != 1);
    } catch (const std::invalid_argument&) {
    }
  }
}

using Values = std::vector<std::uint64_t>;

void launches_follow_the_contract() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  driver.minor = 9;  // served by the archive's 8.6
  const std::vector<std::uint8_t> bytes = archive_of(86);
  const Archive archive(bytes.data(), bytes.size());
  CallBuffers buffers;
  for (std::size_t i = 0; i < kMaxInputs; ++i) buffers.inputs[i] = reinterpret_cast<const void*>((i + 1) * 0x1000);
  buffers.y = reinterpret_cast<void*>(0x100000);
  buffers.workspace = reinterpret_cast<void*>(0x10000000);
  const auto stream = reinterpret_cast<cuda::Stream>(0x77);
  const auto input = [](std::uint64_t i) { return (i + 1) * 0x1000; };

  const Launcher decode(archive, kSmall, kFloat16, kSmallHidden, 3, 0);
  decode.launch(buffers, stream);
  {
    const auto& seen = driver.launches;
    const WorkspaceLayout& at = decode.plan().workspace;
    const std::uint64_t w = 0x10000000, weights = w + at.group_weights, inner = w + at.inner, parts = w + at.parts;
    EXPECT(seen.size() == 4 && seen[0].entry.rfind("route_86_0_8_", 0) == 0 && seen[0].stream == 0x77);
    EXPECT((seen[0].parameters == Values{input(0), input(1), input(2), input(3), input(4), weights, 192, 4, 2, 1, 0, 0}));
    EXPECT((seen[1].parameters ==
            Values{input(0), input(5), input(6), input(8), input(9), weights, inner, 3, 192, 384, 256, 128, 4, 0, 0}));
    EXPECT((seen[2].parameters == Values{inner, input(7), input(10), weights, parts, 3, 192, 384, 256, 128, 4, 8, 0, 0}));
    EXPECT((seen[3].parameters == Values{parts, 0x100000, 576, 8, 0, 0}));
    EXPECT(seen[1].grid_x == 36 && seen[2].grid_x == 6 && seen[2].grid_y == 8 && seen[1].threads == 128 && seen[1].grid_z == 1);
  }
  driver.launches.clear();
  const Launcher prefill(archive, kSmall, kBFloat16, kSmallHidden, 100, 0);
  prefill.launch(buffers, stream);
  {
    const auto& seen = driver.launches;
    const WorkspaceLayout& at = prefill.plan().workspace;
    const std::uint64_t w = 0x10000000, weights = w + at.group_weights, inner = w + at.inner;
    const std::uint64_t listed = w + at.expert_tokens, counts = w + at.expert_counts, parts = w + at.parts;
    EXPECT(seen.size() == 5 && seen[2].entry.rfind("gate_up_prefill_86_1_64_64_", 0) == 0 && seen[2].shared_bytes == 65536);
    EXPECT((seen[1].parameters == Values{weights, listed, counts, 100, 4, 0, 0}));
    EXPECT((seen[2].parameters == Values{input(0), input(5), input(6), input(8), input(9), weights, listed, counts, inner, 100,
                                         192, 384, 256, 128, 4, 0, 0}));
    EXPECT((seen[3].parameters ==
            Values{inner, input(7), input(10), weights, parts, 0x100000, 100, 192, 384, 256, 128, 4, 8, 0, 0}));
    EXPECT((seen[4].parameters == Values{parts, 0x100000, 19200, 8, 0, 0}));
    EXPECT(seen[2].grid_x == 2 && seen[2].grid_y == 18 && seen[3].grid_x == 2 * 8 && seen[3].grid_y == 3);
  }
  driver.launches.clear();
  Launcher(archive, kSmall, kBFloat16, kSmallHidden, 500, 32).launch(buffers, stream);  // a tile of another device
  EXPECT(driver.launches.size() == 4 && driver.launches[2].grid_x == 4 && driver.launches[3].grid_x == 4);
  const int loaded = driver.modules_loaded;
  Launcher(archive, kSmall, kFloat16, kSmallHidden, 16, 0);  // another layer: the same functions
  EXPECT(driver.modules_loaded == loaded);
  driver.context = 2;
  Launcher(archive, kSmall, kFloat16, kSmallHidden, 16, 0);  // another context: its own
  EXPECT(driver.modules_loaded == loaded + 4);

  buffers.inputs[5] = reinterpret_cast<const void*>(0x1008);
  EXPECT_REFUSED(decode.launch(buffers, stream), "gate is not aligned to 16 bytes");
}

void one_product_follows_the_contract() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  driver.minor = 7;
  const std::vector<std::uint8_t> bytes = archive_of(87);
  const Archive archive(bytes.data(), bytes.size());
  const LinearAttributes attributes{8, 128};
  attributes.validate();
  EXPECT_REFUSED((LinearAttributes{4, 128}.validate()), "bits 4 is not 8");
  EXPECT_REFUSED((LinearAttributes{8, 32}.validate()), "block_size 32 is neither 64 nor 128");

  const void* tensors[] = {reinterpret_cast<const void*>(0x1000), reinterpret_cast<const void*>(0x2000),
                           reinterpret_cast<const void*>(0x3000)};
  const LinearLauncher launcher(archive, attributes, 17, 256, 100);
  launcher.launch(tensors, reinterpret_cast<void*>(0x4000), reinterpret_cast<cuda::Stream>(0x77));
  const LaunchSeen& seen = driver.launches.at(0);
  EXPECT(driver.launches.size() == 1 && seen.entry.rfind("linear_87_", 0) == 0 && seen.stream == 0x77);
  EXPECT(seen.grid_x == 2 && seen.grid_y == 4 && seen.grid_z == 1);  // every token and every row, in tiles of 16 and 32
  EXPECT((seen.parameters == Values{0x1000, 0x2000, 0x3000, 0x4000, 17, 256, 100, 0, 0}));
  tensors[1] = reinterpret_cast<const void*>(0x2008);
  EXPECT_REFUSED(launcher.launch(tensors, nullptr, nullptr), "weight is not aligned to 16 bytes");
  driver.minor = 0;
  EXPECT_REFUSED(LinearLauncher(archive, attributes, 1, 256, 100), "no kernel linear for these weights");
  EXPECT_REFUSED(LinearLauncher(archive, attributes, std::int64_t{1} << 40, 256, 100), "no kernel linear");
  driver.minor = 7;
  EXPECT_REFUSED(LinearLauncher(archive, attributes, std::int64_t{1} << 40, 256, 100), "larger than any memory");

  using Types = std::vector<ElementType>;
  constexpr ElementType full = ElementType::kFloat, int8 = ElementType::kInt8, half = ElementType::kHalf;
  check_linear_types({full, int8, full});
  EXPECT_REFUSED(check_linear_types({full, int8}), "there are 2 inputs, but there must be 3");
  EXPECT_REFUSED(check_linear_types({half, int8, full}), "x is HALF, but it must be FLOAT");
  EXPECT_REFUSED(check_linear_types(Types({full, int8, half})), "scale is HALF, but it must be FLOAT");
  check_linear_shapes(attributes, {{-1, 256}, {100, 256}, {100, 2}});
  EXPECT_REFUSED(check_linear_shapes(attributes, {{-1, 256}, {100, 192}, {100, 2}}), "weight has shape [100, 192]");
  EXPECT_REFUSED(check_linear_shapes(attributes, {{-1, 128}, {100, 256}, {100, 2}}), "x has shape [-1, 128]");
  EXPECT_REFUSED(check_linear_shapes(attributes, {{}, {100, 256}, {100, 2}}), "x has 0 axes");
  EXPECT_REFUSED(check_linear_shapes(attributes, {{1, 256}, {100, 256}, {100, 4}}), "scale has shape [100, 4], but it must have [100, 2]");
}

void devices_that_cannot_are_refused() {
  CudaDriverDouble& driver = driver_double();
  const std::vector<std::uint8_t> bytes = archive_of(86);
  const Archive archive(bytes.data(), bytes.size());
  const auto prepare = [&] { Launcher(archive, kSmall, kFloat16, kSmallHidden, 1, 0); };
  driver = {};
  driver.major = 12;
  EXPECT_REFUSED(prepare(), "compute capability 12.0 (it was built for 8.6)");
  driver = {};
  driver.minor = 6;
  driver.context = 0;
  EXPECT_REFUSED(prepare(), "no CUDA context");
  driver = {};
  driver.minor = 6;
  driver.context = 3;
  driver.load_result = 2;
  EXPECT_REFUSED(prepare(), "cuModuleLoadData failed: an error of the double");
}

void no_driver_is_refused() {
  const std::vector<std::uint8_t> bytes = archive_of(86);
  const Archive archive(bytes.data(), bytes.size());
  for (int again = 0; again < 2; ++again)
    EXPECT_REFUSED(Launcher(archive, kSmall, kFloat16, kSmallHidden, 1, 0), "there is no NVIDIA driver here");
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "no-driver") {
    no_driver_is_refused();
  } else {
    attributes_are_checked();
    planned_grids_cover_everything_once();
    archives_are_read();
    damaged_archives_are_refused();
    launches_follow_the_contract();
    one_product_follows_the_contract();
    devices_that_cannot_are_refused();
#ifdef ECHOVLM_WITH_TENSORRT
    plugin_callbacks();
#endif
  }
  std::printf("plugin_driver: %s\n", failures == 0 ? "ok" : "WRONG");
  return failures == 0 ? 0 : 1;
}
