// Runs random Transformers and LSTMs over random trees: every score has the same bits for any number of threads,
// in any waves, in a copied tree and beside a stranger's, and what cannot be appended leaves a tree as it was.
// What the numbers mean is compared in Python; this needs none, so that it also runs under sanitizers.
//
//   engine_check            prints what was run; exit 1 and a line per difference if any
//   engine_check --fault    asks for another last token in what is compared; must exit 1
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "lstm.h"
#include "transformer.h"

using namespace secondpass;

namespace {

std::mt19937 random_bits(11);
int num_wrong = 0;

std::size_t pick(std::size_t lowest, std::size_t highest) {
    return lowest + random_bits() % (highest - lowest + 1);
}

bool coin() { return pick(0, 1) == 1; }

Floats random_floats(std::size_t count, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal(random_bits);
    return Floats(numbers.data(), count);
}

struct Packed {
    std::vector<std::uint32_t> words;
    std::vector<float> scale;
    std::vector<std::int8_t> levels;
};

std::vector<std::int8_t> random_levels(std::size_t bits) {
    std::vector<std::int8_t> levels(kMaxLevels, 0);
    const int count = bits == 8 ? 0 : 1 << bits;
    const bool is_even = bits < 4 || coin();  // evenly spaced levels have kernels of their own
    for (int code = 0; code < count; ++code) {
        const int level = is_even ? 2 * code - count + 1 : static_cast<int>(pick(0, 255)) - 128;
        levels[static_cast<std::size_t>(code)] = static_cast<std::int8_t>(level);
    }
    return levels;
}

SharedWeight random_weight(std::size_t N, std::size_t K, Layout lookup) {
    const std::size_t bits = std::size_t{1} << pick(0, 3);
    const Layout layout = bits <= 2 && coin() ? lookup : Layout::kDot;
    std::size_t group_size = coin() ? K : pick(1, K);
    if (layout != Layout::kDot) group_size = std::min(K, (group_size + 3) / 4 * 4);
    const auto packed = std::make_shared<Packed>();
    packed->levels = random_levels(bits);
    Weight weight{nullptr, nullptr, packed->levels.data(), N, K, group_size, bits, layout,
                  bits <= 2 ? ActivationRule::kQuads : ActivationRule::kAbsmax};
    packed->words.resize(words_per_row(weight) * padded_rows(weight));
    for (std::uint32_t& word : packed->words) word = random_bits();
    packed->scale.resize(groups_of(weight) * padded_rows(weight));
    const float most = 0.04f / (bits == 8 ? 30.0f : static_cast<float>(bits));
    for (float& scale : packed->scale) scale = most * static_cast<float>(pick(1, 100)) / 100.0f;
    weight.words = packed->words.data();
    weight.scale = packed->scale.data();
    return {weight, packed};
}

ProjectionPlan random_projection(std::size_t N, std::size_t K, Layout lookup) {
    ProjectionPlan projection;
    projection.weight = random_weight(N, K, lookup);
    if (coin()) projection.bias = random_floats(padded_rows(projection.weight.weight), 0.0f, 0.1f);
    return projection;
}

NormPlan random_norm(std::size_t K) {
    NormPlan norm;
    if (coin()) norm.gain = random_floats(K, 1.0f, 0.1f);
    if (coin()) norm.bias = random_floats(K, 0.0f, 0.1f);
    norm.epsilon = 1e-5f;
    norm.subtracts_mean = coin();
    return norm;
}

TransformerPlan random_transformer(Layout lookup) {
    TransformerPlan plan;
    const std::size_t head_dim = 2 * pick(1, 20);
    plan.num_heads = pick(1, 3);
    plan.model_dim = plan.num_heads * head_dim;
    plan.ffn_dim = pick(1, 150);
    plan.max_tokens = pick(3, 40);
    plan.embedding = random_weight(pick(1, 200), plan.model_dim, lookup);
    const std::size_t depths = plan.max_tokens + 1;
    if (coin()) plan.positions = random_floats(depths * plan.model_dim, 0.0f, 0.1f);
    if (coin()) {
        plan.cos = random_floats(depths * head_dim / 2, 0.0f, 1.0f);
        plan.sin = random_floats(depths * head_dim / 2, 0.0f, 1.0f);
    }
    plan.normalizes_embedding = coin();
    plan.normalizes_qk = coin();
    plan.norm_epsilon = 1e-5f;
    plan.activation = coin() ? Activation::kSquaredRelu : Activation::kGeluTanh;
    plan.blocks.resize(pick(1, 3));
    for (BlockPlan& block : plan.blocks) {
        block.attention_norm = random_norm(plan.model_dim);
        block.ffn_norm = random_norm(plan.model_dim);
        block.qkv = random_projection(3 * plan.model_dim, plan.model_dim, lookup);
        block.out = random_projection(plan.model_dim, plan.model_dim, lookup);
        block.up = random_projection(plan.ffn_dim, plan.model_dim, lookup);
        block.down = random_projection(plan.model_dim, plan.ffn_dim, lookup);
        if (coin()) {
            block.mix_stream = 0.9f;
            block.mix_embedding = 0.1f;
        }
    }
    plan.final_norm = random_norm(plan.model_dim);
    return plan;
}

LstmPlan random_lstm(Layout lookup) {
    LstmPlan plan;
    plan.model_dim = pick(1, 150);
    plan.max_tokens = pick(3, 40);
    plan.embedding = random_weight(pick(1, 200), plan.model_dim, lookup);
    plan.layers.resize(pick(1, 3));
    for (LstmLayerPlan& layer : plan.layers)
        for (std::size_t gate = 0; gate < kGates; ++gate) {
            layer.input[gate] = random_projection(plan.model_dim, plan.model_dim, lookup);
            layer.recurrent[gate] = random_projection(plan.model_dim, plan.model_dim, lookup);
        }
    return plan;
}

// A model of which engines are made.
struct Model {
    bool is_lstm;
    TransformerPlan transformer;
    LstmPlan lstm;

    std::size_t vocab_size() const { return (is_lstm ? lstm.embedding : transformer.embedding).weight.N; }
    std::size_t max_tokens() const { return is_lstm ? lstm.max_tokens : transformer.max_tokens; }
    std::unique_ptr<Engine> engine(const Kernels& kernels, std::size_t threads) const {
        const auto pool = std::make_shared<Pool>(threads, false);
        if (is_lstm) return std::make_unique<Lstm>(kernels, pool, lstm);
        return std::make_unique<Transformer>(kernels, pool, transformer);
    }
};

struct Nodes {
    std::vector<std::int32_t> parents;
    std::vector<std::int32_t> tokens;
};

Nodes random_nodes(std::size_t count, const Model& model) {
    Nodes nodes;
    std::vector<std::size_t> depth{0};
    for (std::size_t i = 0; i < count; ++i) {
        std::size_t parent = pick(depth.size() - std::min<std::size_t>(depth.size(), 30), depth.size() - 1);
        if (depth[parent] >= model.max_tokens()) parent = 0;
        nodes.parents.push_back(static_cast<std::int32_t>(parent));
        nodes.tokens.push_back(static_cast<std::int32_t>(pick(0, model.vocab_size() - 1)));
        depth.push_back(depth[parent] + 1);
    }
    return nodes;
}

std::vector<float> scores_at_once(Engine& engine, const Nodes& nodes) {
    const auto tree = engine.new_tree({0});
    std::vector<float> scores(nodes.tokens.size());
    const Growth growth{tree.get(), nodes.parents.data(), nodes.tokens.data(), scores.size()};
    engine.extend(&growth, 1, scores.data());
    return scores;
}

std::unique_ptr<Tree> copied(const Engine& engine, const Tree& tree) {
    std::vector<std::int32_t> all(tree.size());
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
    return engine.fork(tree, all.data(), all.size());
}

void refuse(Engine& engine, Tree* tree, std::int32_t parent, std::int32_t token) {
    const std::size_t size = tree->size();
    const Growth growth{tree, &parent, &token, 1};
    float score;
    try {
        engine.extend(&growth, 1, &score);
        std::printf("node %d after %d was appended\n", token, parent);
        ++num_wrong;
    } catch (const std::invalid_argument&) {
        num_wrong += tree->size() != size;
    }
}

// In waves, now and then beside a stranger's tree, in a copy, or after a node that is refused.
std::vector<float> scores_in_waves(Engine& engine, const Nodes& nodes, const Model& model) {
    const std::size_t count = nodes.tokens.size();
    auto tree = engine.new_tree({0});
    const auto last_token = static_cast<std::int32_t>(model.vocab_size() - 1);
    std::vector<float> scores;
    while (scores.size() < count) {
        const std::size_t done = scores.size();
        const std::size_t wave = pick(1, count - done);
        const auto stranger = engine.new_tree({0, last_token});
        const std::vector<std::int32_t> parents{0, 1, 2};
        const std::vector<std::int32_t> tokens{0, last_token, 0};
        std::vector<Growth> growths{{tree.get(), &nodes.parents[done], &nodes.tokens[done], wave}};
        const bool is_second = coin();
        std::size_t before = 0;
        if (coin()) {
            const Growth other{stranger.get(), parents.data(), tokens.data(), parents.size()};
            growths.insert(is_second ? growths.begin() : growths.end(), other);
            before = is_second ? parents.size() : 0;
        }
        std::vector<float> answers(wave + parents.size());
        engine.extend(growths.data(), growths.size(), answers.data());
        scores.insert(scores.end(), answers.begin() + static_cast<std::ptrdiff_t>(before),
                      answers.begin() + static_cast<std::ptrdiff_t>(before + wave));
        if (coin()) tree = copied(engine, *tree);
        if (coin()) refuse(engine, tree.get(), coin() ? -1 : static_cast<std::int32_t>(tree->size()), 0);
        if (coin()) refuse(engine, tree.get(), 0, coin() ? -1 : last_token + 1);
    }
    return scores;
}

void compare(const std::string& isa, const char* how, const std::vector<float>& actual,
             const std::vector<float>& expected) {
    const std::size_t bytes = expected.size() * sizeof(float);
    if (actual.size() == expected.size() && std::memcmp(actual.data(), expected.data(), bytes) == 0) return;
    ++num_wrong;
    std::printf("%s: scores %s are not those of one thread at once\n", isa.c_str(), how);
}

void check_instruction_set(const std::string& isa, bool has_fault) {
    const int models = has_fault ? 2 : 24;
    for (int round = 0; round < models; ++round) {
        const Layout lookup = lookup_layout(isa);
        Model model{round % 2 == 1, {}, {}};
        if (model.is_lstm) model.lstm = random_lstm(lookup);
        else model.transformer = random_transformer(lookup);
        Nodes nodes = random_nodes(round % 10 == 0 ? pick(300, 800) : pick(1, 120), model);
        const auto alone = model.engine(kernels_of(isa), 1);
        const std::vector<float> expected = scores_at_once(*alone, nodes);
        for (const float score : expected)
            if (!(score <= 1e-3f) || !std::isfinite(score)) {
                ++num_wrong;
                std::printf("%s: a score is %g\n", isa.c_str(), static_cast<double>(score));
                break;
            }
        if (has_fault) nodes.tokens.back() = (nodes.tokens.back() + 1) % static_cast<std::int32_t>(model.vocab_size());
        const auto together = model.engine(kernels_of(isa), pick(2, 4));
        compare(isa, "by several threads", scores_at_once(*together, nodes), expected);
        compare(isa, "in waves", scores_in_waves(*together, nodes, model), expected);
        compare(isa, "in waves of one thread", scores_in_waves(*alone, nodes, model), expected);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const bool has_fault = argc > 1 && std::strcmp(argv[1], "--fault") == 0;
    for (const std::string& isa : instruction_sets()) {
        const int before = num_wrong;
        check_instruction_set(isa, has_fault);
        std::printf("%s: %s\n", isa.c_str(), num_wrong == before ? "right" : "WRONG");
    }
    return num_wrong == 0 ? 0 : 1;
}
