// An int8 model in use in C++: onnxruntime alone, onnxq is not needed any more.
//
// g++ -std=c++17 -I"$ONNXRUNTIME/include" examples/deploy/run.cpp -L"$ONNXRUNTIME/lib" -lonnxruntime -o run
// ./run models/digits_resnet.w8a8.onnx
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <iostream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: run MODEL" << std::endl;
    return 2;
  }
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
    Ort::SessionOptions options;
    // Integer kernels come with the optimizations at load: leave them on.
    options.SetGraphOptimizationLevel(ORT_ENABLE_ALL);
    // Threads that wait by spinning take processor time from whatever else runs; this makes them sleep.
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    Ort::Session session(env, argv[1], options);

    // Names, shapes and types are those of the float model: what feeds that one feeds this one.
    Ort::AllocatorWithDefaultOptions allocator;
    const auto input = session.GetInputNameAllocated(0, allocator);
    const auto output = session.GetOutputNameAllocated(0, allocator);
    std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    size_t elements = 1;
    for (int64_t& size : shape) {
      size = std::max<int64_t>(size, 1);  // a free dimension is -1
      elements *= static_cast<size_t>(size);
    }
    std::vector<float> image(elements, 0.5f);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto tensor = Ort::Value::CreateTensor<float>(memory, image.data(), image.size(), shape.data(), shape.size());

    const char* inputs[] = {input.get()};
    const char* outputs[] = {output.get()};
    auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
    const float* logits = results[0].GetTensorData<float>();
    const size_t classes = results[0].GetTensorTypeAndShapeInfo().GetElementCount();
    std::cout << std::distance(logits, std::max_element(logits, logits + classes)) << std::endl;
  } catch (const Ort::Exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
  return 0;
}
